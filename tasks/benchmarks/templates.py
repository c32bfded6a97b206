"""Jinja templates over the columns of a row, for a benchmark's prompt, fields, options and gold label."""

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


# Sandboxed: params.yaml may be untrusted. No escaping and no trimming: a prompt keeps its last newline.
_ENVIRONMENT = SandboxedEnvironment(
    undefined=StrictUndefined, finalize=text_of, keep_trailing_newline=True, autoescape=False
)
_ENVIRONMENT.globals.clear()  # a missing column `range` must not print Jinja's function
_ENVIRONMENT.tests["none"] = is_null
_ENVIRONMENT.filters |= FILTERS

ROW = "row"  # `row["a name"]` reads a column whose name is not a name in Jinja
_EXAMPLE = 'row["its name"]'


class NullInputError(InputError):
    """A template needed a value that is null."""


class _WholeRow:
    """The value of `row` in a template that has `row["a name"]`: the columns of the row.

    If a column `row` holds a mapping, as in exports of the hub's viewer, it is used for names that are not columns.
    """

    __slots__ = ("_columns",)

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> Any:
        inner = self._columns.get(ROW)
        columns = inner if name not in self._columns and isinstance(inner, Mapping) else self._columns
        return readable(columns[name], name) if name in columns else StrictUndefined(name=name)


def compile_template(text: str, *, field: str) -> Render:
    """A function that renders the template for a row (column -> value) and the row's number.

    Values become text by `values.text_of`. `field` is the template's field in params.yaml.

    Raises:
        InputError: the template has a syntax error. When called: the row lacks a column, its value is not text (a
            NullInputError if it is null), or the template fails in another way.

    Example:
        >>> compile_template("{{ text }} ?", field="prompt")({"text": "warm"}, 1)
        'warm ?'
    """
    try:
        template = _ENVIRONMENT.from_string(text)
        variables = _variables(text)
    except TemplateSyntaxError as error:
        hint = "; a column with such a name is " + _EXAMPLE if "'end of print statement'" in str(error) else ""
        raise InputError(field, f"not a valid template, line {error.lineno}: {error.message}{hint}") from None

    def render(row: Mapping[str, Any], number: int) -> str:
        try:
            return template.render(variables(row))
        except Exception as error:  # a template may call any method of its values, so it may raise anything
            raise _failed(error, row, number, field) from None

    return render


def compile_value(text: str, *, field: str) -> Evaluate:
    """Like `compile_template`, but a template that is one `{{ expression }}` gives its value, such as a list.

    Raises:
        InputError: as `compile_template`. A null is refused; nulls inside a list or mapping are not.
    """
    render = compile_template(text, field=field)
    expression = _expression(text)
    if expression is None:
        return render
    compiled = _ENVIRONMENT.compile_expression(expression, undefined_to_none=False)
    variables = _variables(text)

    def evaluate(row: Mapping[str, Any], number: int) -> Any:
        try:
            value = compiled(variables(row))
        except Exception as error:
            raise _failed(error, row, number, field) from None
        # Rendering an undefined or null value raises the error that names it.
        return render(row, number) if isinstance(value, Undefined) or is_null(value) else value

    return evaluate


def _variables(text: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function from a row to the variables of the template: the names that it uses, with readable values."""
    tree = _ENVIRONMENT.parse(text)
    names = meta.find_undeclared_variables(tree)
    whole = bool(_columns_of_row(tree, names))

    def see(row: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: readable(row[name], name) for name in names if name in row and not (whole and name == ROW)}
        return values | {ROW: _WholeRow(row)} if whole else values

    return see


def _columns_of_row(tree: nodes.Template, names: set[str]) -> set[str]:
    """The columns that a template reads as `row["name"]` or `row.name`; empty without any `row["name"]`."""
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
    """The expression of a template that is one `{{ expression }}`; None for other templates."""
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
    names = f"the row has {sorted(row)}"
    strange = next((name for name in sorted(row) if not is_name(name)), None)
    if strange is not None:
        names += f"; write {strange!r} as {ROW}[{strange!r}]"
    return InputError(field, f"row {number}: {problem}; {names}")


def is_name(column: str) -> bool:
    """Whether `{{ column }}` is the column, not an operator, a number or a keyword of Jinja such as `not`."""
    try:
        return column.isidentifier() and names_used("{{ " + column + " }}") == {column}
    except TemplateSyntaxError:
        return False


def is_template(text: str) -> bool:
    """Whether rendering can change the text."""
    return any(mark in text for mark in ("{{", "{%", "{#"))


def names_used(text: str) -> set[str]:
    """The columns that a template without syntax errors uses, by name or as `row["name"]`."""
    tree = _ENVIRONMENT.parse(text)
    names: set[str] = meta.find_undeclared_variables(tree)
    columns = _columns_of_row(tree, names)
    return names - {ROW} | columns if columns else names


def fixed_options(spec: BenchmarkSpec) -> list[str] | None:
    """The options if all rows have the same; None if they are templates."""
    if isinstance(spec.options, str) or any(is_template(option) for option in spec.options):
        return None
    return spec.options
