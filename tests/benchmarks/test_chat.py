"""Chat templates: the same text on every day, and one error line if a template cannot be used."""

import datetime

import pytest
from transformers.utils import chat_template_utils

from tasks.benchmarks.benchmark_spec import DATE
from tasks.benchmarks.chat import chat_text
from tasks.runtime.errors import InputError
from tests.tiny import tiny_tokenizer

LLAMA = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- 'Today Date: ' + date_string + '\n' }}"
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TURN = "{{ messages[0].content }}"


def asking(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


class Later(datetime.datetime):
    """A clock that shows another day."""

    @classmethod
    def now(cls, tz=None):
        return cls(2031, 3, 4, 5, 6, 7, tzinfo=tz)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAMA, "Today Date: 26 Jul 2024\n<user>Q:<assistant>"),
        (TURN + "{{ strftime_now('%Y-%m-%d') }}", "Q:2024-07-26"),
        (TURN + "{{ strftime_now('%d %B %Y, %H:%M:%S') }}", "Q:26 July 2024, 00:00:00"),
        (TURN + "{{ strftime_now(format='%A') }}", "Q:Friday"),
        (TURN + "{% macro day() %}{{ strftime_now('%j') }}{% endmacro %}{{ day() }}", "Q:208"),
        (TURN + "{{ date_string }}", "Q:26 Jul 2024"),
    ],
)
def test_a_template_is_told_the_fixed_date(template, expected, monkeypatch):
    assert chat_text(asking(template), "Q:") == expected
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    assert chat_text(asking(template), "Q:") == expected


def test_a_template_is_told_the_date_that_was_set():
    assert chat_text(asking(LLAMA), "Q:", "2025-02-03").startswith("Today Date: 03 Feb 2025\n")
    assert chat_text(asking(LLAMA), "Q:").startswith("Today Date: 26 Jul 2024\n")
    assert DATE == "2024-07-26"


@pytest.mark.parametrize(
    "template",
    [
        TURN + "{{ eos_token }}{% generation %}{{ messages | tojson }}{% endgeneration %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}"
        "{% endif %}{{ m.content }}{% break %}{% endfor %}{{ ns.n }} {{ tools is none }} {{ documents is none }}",
        {"default": TURN + "d", "rag": TURN + "r"},
    ],
)
def test_everything_but_the_date_is_as_transformers_has_it(template):
    tokenizer = asking(template)
    turns = [{"role": "user", "content": "Wärme <b>?"}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chat_text(tokenizer, "Wärme <b>?") == expected


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (None, "is true, but this model's tokenizer has no chat template"),
        ("", "is true, but this model's tokenizer has no chat template"),
        ("{{ raise_exception('Only assistants\n may talk') }}", "fails: Only assistants may talk"),
        ("{% if %}", "fails: Expected an expression"),
        ("{% for m in messages %}", "fails: Unexpected end of template"),
        ("{% unknown_tag %}", "fails: Encountered unknown tag"),
        ("{{ messages[0].content | no_such_filter }}", "fails: No filter named 'no_such_filter'"),
        ("{{ now() }}", "fails: 'now' is undefined"),
        ("{{ datetime.now() }}", "fails: 'datetime' is undefined"),
        ("{{ messages[3].content.text }}", "fails: list object has no element 3"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
        ("{% include 'other' %}", "fails: no loader"),
        ({"rag": TURN}, "no default specified"),
        (5, "fails: "),
        (["a"], "fails: "),
        (TURN + "{{ [1, 2] | random }}", "fails: it uses `random`"),
        (TURN + "{{ [[1, 2]] | map('random') | list }}", "fails: it uses `random`"),
        (TURN + "{{ lipsum() }}", "fails: it uses `lipsum`"),
        (TURN + "{{ messages | map(attribute='role') }}", "writes a memory address, <generator object"),
        ("{{ '' }}", "gives an empty text"),
        ("{{ ' \n' }}", "gives an empty text"),
        (
            "{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}<assistant>",
            "omits the user's turn",
        ),
        ("{{ messages[0].content[0].text }}<assistant>", "omits the user's turn"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template, match):
    with pytest.raises(InputError, match=match) as error:
        chat_text(asking(template), "Q:")
    assert error.value.field == "chat_template"
