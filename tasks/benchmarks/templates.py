"""Jinja templates over the columns of a row: how a benchmark's prompt, fields and gold label are made without code."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.sandbox import SandboxedEnvironment

from tasks.pipeline.declared import BenchmarkSpec
from tasks.pipeline.errors import InputError

Render = Callable[[Mapping[str, Any], int], str]
Evaluate = Callable[[Mapping[str, Any], int], Any]


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
            raise _failed(error, row, number, field) from None

    return render


def compile_value(text: str, *, field: str) -> Evaluate:
    """Like `compile_template`, but a template that is one `{{ expression }}` gives its value: a list stays a list.

    Raises:
        InputError: as `compile_template`.
    """
    render = compile_template(text, field=field)
    expression = _expression(text)
    if expression is None:
        return render
    compiled = _ENVIRONMENT.compile_expression(expression, undefined_to_none=False)

    def evaluate(row: Mapping[str, Any], number: int) -> Any:
        try:
            value = _not_null(compiled(row))
        except Exception as error:
            raise _failed(error, row, number, field) from None
        # What is undefined or cannot be computed tells why when it is printed; text is printed as it is.
        return render(row, number) if isinstance(value, Undefined) else value

    return evaluate


def _expression(text: str) -> str | None:
    """What stands between the braces of a template that is nothing but one `{{ expression }}`."""
    body = _ENVIRONMENT.parse(text).body
    if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
        return None
    if isinstance(body[0].nodes[0], nodes.TemplateData):
        return None
    return text.strip()[2:-2].strip("-+") if text.startswith("{{") and text.endswith("}}") else None


def _failed(error: Exception, row: Mapping[str, Any], number: int, field: str) -> InputError:
    problem = str(error) or type(error).__name__
    return InputError(field, f"row {number}: {problem}; the names there are {sorted(row)}")


def is_template(text: str) -> bool:
    """Whether rendering can change the text."""
    return any(mark in text for mark in ("{{", "{%", "{#"))


def names_used(text: str) -> set[str]:
    """The names that a template without syntax errors asks for."""
    return meta.find_undeclared_variables(_ENVIRONMENT.parse(text))


def fixed_options(spec: BenchmarkSpec) -> list[str] | None:
    """The options, if every row has the same; None if a template makes them of the row."""
    if isinstance(spec.options, str) or any(is_template(option) for option in spec.options):
        return None
    return spec.options
