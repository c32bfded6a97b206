"""Templates over the columns of a row."""

import pytest

from tasks.benchmarks.templates import compile_template, names_used
from tasks.pipeline.errors import InputError

FIELD = "benchmarks.b.prompt"


def render(text, **row):
    return compile_template(text, field=FIELD)(row, 7)


@pytest.mark.parametrize(
    ("text", "row", "rendered"),
    [
        ("{{ a }}\n\nAnswer:\n", {"a": "x <&> 'y'"}, "x <&> 'y'\n\nAnswer:\n"),  # not escaped, last newline kept
        ("{{ a }}", {"a": True}, "True"),
        ("{{ a }}", {"a": 0.5}, "0.5"),
        ("{{ a }}", {"a": "{{ b }}"}, "{{ b }}"),  # a value is never a template
        ("{{ a.b[0] }}", {"a": {"b": ["x"]}}, "x"),
        ("{% for o in a %}{{ loop.index }}. {{ o }}\n{% endfor %}", {"a": ["x", "y"]}, "1. x\n2. y\n"),
        ("{{ a or 'none' }}", {"a": None}, "none"),
        ("a\u2028b{{ a }}\u0085", {"a": "\r\n"}, "a\u2028b\r\n\u0085"),
    ],
)
def test_text_comes_out_as_it_is_written(text, row, rendered):
    assert render(text, **row) == rendered


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{{ b }}", "row 7: 'b' is undefined; the names there are ['a']"),
        ("{{ a.c }}", "row 7: 'dict object' has no attribute 'c'; the names there are ['a']"),
        ("{{ range }}", "row 7: 'range' is undefined; the names there are ['a']"),
        ("{{ a.b }}", "row 7: prints an empty (null) value; the names there are ['a']"),
        ("{{ 1 / 0 }}", "row 7: division by zero; the names there are ['a']"),
        ("{{ a.__class__.__mro__ }}", "row 7: access to attribute '__class__' of 'dict' object is unsafe."),
    ],
)
def test_a_row_that_does_not_fit(text, line):
    with pytest.raises(InputError) as caught:
        render(text, a={"b": None})
    assert str(caught.value).startswith(f"{FIELD}: {line}")


@pytest.mark.parametrize("text", ["{{ a", "{% if a %}x", "line one\n{{ a b }}"])
def test_a_syntax_error_is_found_without_a_row(text):
    with pytest.raises(InputError, match=r"^benchmarks\.b\.prompt: not a valid template, line \d: "):
        compile_template(text, field=FIELD)


def test_names_used():
    assert names_used("{{ a }}{% for o in options %}{{ o }}{% endfor %}{{ b.c }}") == {"a", "options", "b"}
