"""A row that a user types: the fields of a benchmark's prompt, and the rendered prompt and options."""

import json
from typing import Any

from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.benchmarks.templates import compile_template, compile_value, names_used
from tasks.benchmarks.values import NotTextError, text_of
from tasks.runtime.errors import InputError


def fields_asked(spec: BenchmarkSpec) -> list[str]:
    """The names that the prompt and then the options use."""
    options = [spec.options] if isinstance(spec.options, str) else spec.options
    in_prompt = sorted(names_used(spec.prompt))
    return in_prompt + sorted({name for option in options for name in names_used(option)} - set(in_prompt))


def read_row(text: str, fields: list[str]) -> dict[str, Any]:
    """The row from a typed line: a JSON object with the fields, or the text of the only field.

    Raises:
        InputError: fields are missing.
    """
    if text.lstrip().startswith("{"):
        try:
            row = json.loads(text)
        except ValueError as error:
            raise InputError("row", f"is not JSON: {error}") from None
    elif len(fields) == 1:
        row = {fields[0]: text}
    else:
        example = json.dumps(dict.fromkeys(fields, ".."))
        raise InputError("row", f"must be a JSON object with {', '.join(fields)}, such as {example}")
    if missing := [name for name in fields if name not in row]:
        raise InputError("row", f"lacks {', '.join(missing)}; a row has {', '.join(fields)}")
    return dict(row)


def read_value(text: str) -> Any:
    """The value of one field: a JSON list or object, or else the text itself."""
    if text.lstrip().startswith(("[", "{")):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def ask(spec: BenchmarkSpec, row: dict[str, Any]) -> tuple[str, list[str]]:
    """The prompt and the options of a row.

    Raises:
        InputError: a template fails, or gives fewer than two options.
    """
    prompt = compile_template(spec.prompt, field="prompt")(row, 1)
    if not isinstance(spec.options, str):
        return prompt, [compile_template(option, field="options")(row, 1) for option in spec.options]
    options = compile_value(spec.options, field="options")(row, 1)
    if not isinstance(options, list | tuple) or len(options) < 2:
        raise InputError("options", f"must be a list of at least two, not {options!r:.60}")
    try:
        return prompt, [text_of(option, "options") for option in options]
    except NotTextError as error:
        raise InputError("options", str(error)) from None
