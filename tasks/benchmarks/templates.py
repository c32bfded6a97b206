"""Jinja templates over the columns of a row: how a benchmark's prompt, fields and gold label are made without code."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from tasks.pipeline.errors import InputError

Render = Callable[[Mapping[str, Any], int], str]


def _not_null(value: Any) -> Any:
    if value is None:
        raise ValueError("prints an empty (null) value")
    return value


# Sandboxed: params.yaml may come from someone else. No escaping and no trimming: a prompt is text, to the last newline.
_ENVIRONMENT = SandboxedEnvironment(
    undefined=StrictUndefined, finalize=_not_null, keep_trailing_newline=True, autoescape=False
)
_ENVIRONMENT.globals.clear()  # a missing column called `range` or `dict` must not print a function of Jinja's


def compile_template(text: str, *, field: str) -> Render:
    """A function from a row (column -> value) and its number to the text that the template makes of the row.

    Python values print as Python prints them (True, 0.5). `field` is the template's place in params.yaml.

    Raises:
        InputError: the template has a syntax error; when called, that a row lacks a column or its value is null, or
            that the template fails in another way.
    """
    try:
        template = _ENVIRONMENT.from_string(text)
    except TemplateSyntaxError as error:
        raise InputError(field, f"not a valid template, line {error.lineno}: {error.message}") from None

    def render(row: Mapping[str, Any], number: int) -> str:
        try:
            return template.render(row)
        except Exception as error:  # a template may call any method of its values, so it may raise anything
            problem = str(error) or type(error).__name__
            raise InputError(field, f"row {number}: {problem}; the names there are {sorted(row)}") from None

    return render


def names_used(text: str) -> set[str]:
    """The names that a template without syntax errors asks for."""
    return meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
