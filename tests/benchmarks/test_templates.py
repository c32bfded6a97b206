"""Templates over the columns of a row."""

import json

import pytest

from tasks.benchmarks.templates import compile_template, compile_value, names_used
from tasks.runtime.errors import InputError

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
        ("{{ b }}", "row 7: 'b' is undefined; the row has ['a']"),
        ("{{ a.c }}", "row 7: 'dict object' has no attribute 'c'; the row has ['a']"),
        ("{{ range }}", "row 7: 'range' is undefined; the row has ['a']"),
        ("{{ a.b }}", "row 7: a.b is empty (null)"),
        ("{{ 1 / 0 }}", "row 7: division by zero; the row has ['a']"),
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


# -- columns whose names are not names in Jinja ------------------------------------------------------------------------

STRANGE = [
    "Correct Answer", "a.b", " text", "2nd", "", "not", "true", "None", "self", "a-b", "it's", 'a"b',
    "a]b", "\u0430 \u0431", "a\nb", "__class__", "_columns",
]  # fmt: skip
PLAIN = [
    "in",
    "loop",
    "range",
    "dict",
    "row",
    "result",
    "items",
    "keys",
    "Frage",
    "\u0432\u043e\u043f\u0440\u043e\u0441",
    "_x",
]


@pytest.mark.parametrize("name", STRANGE + PLAIN)
def test_every_column_can_be_named(name):
    text = "{{ row[" + json.dumps(name) + "] }}"
    row = {name: "value", "other": "x"}
    assert render("a " + text, **row) == "a value"
    assert compile_value(text, field=FIELD)(row, 7) == "value"
    assert names_used(text) == {name}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_needs_no_row(name):
    text = "{{ " + name + " }}"
    assert render(text, **{name: "value"}) == compile_value(text, field=FIELD)({name: "value"}, 7) == "value"
    assert names_used(text) == {name}


@pytest.mark.parametrize("name", [name for name in STRANGE if name not in ("__class__", "_columns")])
def test_the_message_says_how_to_write_a_name(name):
    with pytest.raises(InputError) as caught:
        render("{{ b }}", **{name: 1})
    assert str(caught.value).endswith(f"; write {name!r} as row[{name!r}]")
    assert render(f"{{{{ row[{name!r}] }}}}", **{name: 1}) == "1"


@pytest.mark.parametrize("name", ["a\nb", "\ud800", "", "((" * 9999])
@pytest.mark.parametrize("value", [None, [1], b"\xff", float("inf")])
def test_no_name_of_a_column_breaks_the_line(name, value):
    for text in ("{{ row[" + json.dumps(name) + "] }}", "{{ b }}"):
        with pytest.raises(InputError) as caught:
            render(text, **{name: value})
        assert str(caught.value).isprintable()


def test_a_name_with_a_blank_is_a_syntax_error_that_says_how_to_write_it():
    with pytest.raises(InputError, match=r'; a column with such a name is row\["its name"\]$'):
        compile_template("{{ Correct Answer }}", field=FIELD)


def test_a_column_called_row():
    assert render("{{ row }} {{ row | upper }} {{ row[0] }}", row="ab") == "ab AB a"
    assert render("{{ row.text }}", row={"text": "a"}) == "a"  # as the hub's viewer exports rows
    assert render('{{ row["text"] }}', row={"text": "a"}) == "a"
    assert render('{{ row["row"] }} {{ row["a b"] }}', row="x", **{"a b": "y"}) == "x y"
    assert render("{% for row in rows %}{{ row.a }}{% endfor %}", rows=[{"a": 1}, {"a": 2}]) == "12"
    assert names_used("{{ row }}{{ row.a }}") == {"row"}
    assert names_used('{{ row["a b"] }}{{ row.c }}{{ d }}') == {"a b", "c", "d"}


def test_a_column_that_is_not_there():
    with pytest.raises(InputError, match=r"row 7: 'a c' is undefined; the row has \['a b'\]"):
        render('{{ row["a c"] }}', **{"a b": 1})
    assert render('{{ row["a c"] | default("none") }}', a=1) == "none"
