"""Jinja templates over the columns of a row: how a benchmark's prompt, fields and gold label are made without code."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.sandbox import SandboxedEnvironment

from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.benchmarks.template_filters import FILTERS
from tasks.benchmarks.values import NotTextError, NullError, is_null, readable, text_of
from tasks.runtime.errors import InputError

Render = Callable[[Mapping[str, Any], int], str]
Evaluate = Callable[[Mapping[str, Any], int], Any]


# Sandboxed: params.yaml may come from someone else. No escaping and no trimming: a prompt is text, to the last newline.
_ENVIRONMENT = SandboxedEnvironment(
    undefined=StrictUndefined, finalize=text_of, keep_trailing_newline=True, autoescape=False
)
_ENVIRONMENT.globals.clear()  # a missing column called `range` or `dict` must not print a function of Jinja's
_ENVIRONMENT.tests["none"] = is_null
_ENVIRONMENT.filters |= FILTERS

ROW = "row"  # `row["a name"]` is for columns whose names are not names in Jinja
_EXAMPLE = 'row["its name"]'


class NullInputError(InputError):
    """A template needed a value that is null."""


class _WholeRow:
    """What `row` is in a template that has `row["a name"]`: the columns of the row.

    A column called `row` that holds a mapping, as in exports of the hub's viewer, answers for names that no column has.
    """

    __slots__ = ("_columns",)

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> Any:
        inner = self._columns.get(ROW)
        columns = inner if name not in self._columns and isinstance(inner, Mapping) else self._columns
        return readable(columns[name], name) if name in columns else StrictUndefined(name=name)


def compile_template(text: str, *, field: str) -> Render:
    """A function from a row (column -> value) and its number to the text that the template makes of the row.

    Values become text by `values.text_of`. `field` is the template's place in params.yaml.

    Raises:
        InputError: the template has a syntax error; when called, that a row lacks a column or its value is not text
            (a NullInputError if it is null), or that the template fails in another way.
    """
    try:
        template = _ENVIRONMENT.from_string(text)
        seen = _seen(text)
    except TemplateSyntaxError as error:
        hint = "; a column with such a name is " + _EXAMPLE if "'end of print statement'" in str(error) else ""
        raise InputError(field, f"not a valid template, line {error.lineno}: {error.message}{hint}") from None

    def render(row: Mapping[str, Any], number: int) -> str:
        try:
            return template.render(seen(row))
        except Exception as error:  # a template may call any method of its values, so it may raise anything
            raise _failed(error, row, number, field) from None

    return render


def compile_value(text: str, *, field: str) -> Evaluate:
    """Like `compile_template`, but a template that is one `{{ expression }}` gives its value: a list stays a list.

    Raises:
        InputError: as `compile_template`; a null is refused, nulls inside of a list or mapping are not.
    """
    render = compile_template(text, field=field)
    expression = _expression(text)
    if expression is None:
        return render
    compiled = _ENVIRONMENT.compile_expression(expression, undefined_to_none=False)
    seen = _seen(text)

    def evaluate(row: Mapping[str, Any], number: int) -> Any:
        try:
            value = compiled(seen(row))
        except Exception as error:
            raise _failed(error, row, number, field) from None
        # What is undefined or null, or cannot be computed, tells why when it is printed; text is printed as it is.
        return render(row, number) if isinstance(value, Undefined) or is_null(value) else value

    return evaluate


def _seen(text: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function from a row to what the template sees of it: the names that it uses, with readable values."""
    tree = _ENVIRONMENT.parse(text)
    names = meta.find_undeclared_variables(tree)
    whole = bool(_columns_of_row(tree, names))

    def see(row: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: readable(row[name], name) for name in names if name in row and not (whole and name == ROW)}
        return values | {ROW: _WholeRow(row)} if whole else values

    return see


def _columns_of_row(tree: nodes.Template, names: set[str]) -> set[str]:
    """The columns that a template names as `row["name"]`, and then also as `row.name`; without the first, none."""
    if ROW not in names:
        return set()
    items = [
        item.arg.value
        for item in tree.find_all(nodes.Getitem)
        if _is_row(item.node) and isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str)
    ]
    attributes = [item.attr for item in tree.find_all(nodes.Getattr) if _is_row(item.node)]
    return {*items, *attributes} if items else set()


def _is_row(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == ROW


def _expression(text: str) -> str | None:
    """What stands between the braces of a template that is nothing but one `{{ expression }}`."""
    body = _ENVIRONMENT.parse(text).body
    if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
        return None
    if isinstance(body[0].nodes[0], nodes.TemplateData):
        return None
    return text.strip()[2:-2].strip("-+") if text.startswith("{{") and text.endswith("}}") else None


def _failed(error: Exception, row: Mapping[str, Any], number: int, field: str) -> InputError:
    if isinstance(error, NotTextError):
        kind = NullInputError if isinstance(error, NullError) else InputError
        return kind(field, f"row {number}: {error}")
    problem = str(error) or type(error).__name__
    names = f"the names there are {sorted(row)}"
    strange = next((name for name in sorted(row) if not _is_name(name)), None)
    if strange is not None:
        names += f"; of these, {strange!r} is written {ROW}[{strange!r}]"
    return InputError(field, f"row {number}: {problem}; {names}")


def _is_name(column: str) -> bool:
    """Whether `{{ column }}` is the column, not a sign, a number or a word of Jinja's such as `not`."""
    try:
        return column.isidentifier() and names_used("{{ " + column + " }}") == {column}
    except TemplateSyntaxError:
        return False


def is_template(text: str) -> bool:
    """Whether rendering can change the text."""
    return any(mark in text for mark in ("{{", "{%", "{#"))


def names_used(text: str) -> set[str]:
    """The columns that a template without syntax errors asks for, by name or as `row["name"]`."""
    tree = _ENVIRONMENT.parse(text)
    names: set[str] = meta.find_undeclared_variables(tree)
    columns = _columns_of_row(tree, names)
    return names - {ROW} | columns if columns else names


def fixed_options(spec: BenchmarkSpec) -> list[str] | None:
    """The options, if every row has the same; None if a template makes them of the row."""
    if isinstance(spec.options, str) or any(is_template(option) for option in spec.options):
        return None
    return spec.options
