"""Examples: rows of a benchmark with rendered prompts and gold options."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from tasks.benchmarks.benchmark_spec import EVERY, BenchmarkSpec, HeldOut, SplitRows
from tasks.benchmarks.columns import Kinds, add_kinds, as_sent
from tasks.benchmarks.row_files import Row
from tasks.benchmarks.templates import (
    Evaluate,
    NullInputError,
    compile_template,
    compile_value,
    fixed_options,
    is_template,
    names_used,
)
from tasks.benchmarks.values import NotTextError, compared, is_null, text_of
from tasks.runtime.errors import InputError

MISSING = ("-1", "")  # how data sets mark an unpublished label, besides null
BY_WHERE, UNLABELLED, AMBIGUOUS = "left out by `where`", "without a label", "with an option twice"  # reasons


@dataclass(frozen=True)
class Example:
    """One row of a benchmark.

    Attributes:
        number: counts the rows of its source from 1.
        gold: an index into the options; `EVERY` if each of them is right (free answers).
    """

    number: int
    prompt: str
    gold: int
    options: tuple[str, ...] = ()
    group: str | None = None

    @property
    def identity(self) -> tuple[str, tuple[str, ...]]:
        """Two examples with the same identity are the same: the same prompt may have other options."""
        return self.prompt, self.options


@dataclass(frozen=True)
class SourceExamples:
    """The examples of one source, and the number of rows that were left out, by reason.

    Attributes:
        kinds: the kinds of the columns that the prompt uses, if a served model takes these columns as inputs.
        sent: these columns of the first example, as they are sent to a served model.
    """

    examples: list[Example]
    left_out: Counter[str]
    kinds: Kinds
    sent: Row


def select(rows: list[Row], where: dict[str, list[Any]], *, field: str) -> list[tuple[int, Row]]:
    """The rows, with their numbers from 1, in which each column of `where` has one of the wanted values.

    Values are compared as the text that a template would print, since CSV has only text; 1.0 equals 1. A null or a
    missing column matches no value.

    Raises:
        InputError: no row has such a column, or a value in it is not text, such as a list.
    """
    for column in where:
        if rows and not any(column in row for row in rows):
            raise InputError(
                f"{field}.where.{column}",
                f"no such column; choose from {sorted({name for row in rows for name in row})}",
            )
    wanted = {column: {compared(str(value)) for value in values} for column, values in where.items()}
    return [
        (number, row)
        for number, row in enumerate(rows, start=1)
        if all(_text_in(row, column, number, field) in values for column, values in wanted.items())
    ]


def _text_in(row: Row, column: str, number: int, field: str) -> str | None:
    """The value that `where` compares; None for a null or a missing column."""
    if is_null(row.get(column)):
        return None
    try:
        return compared(text_of(row[column], column))
    except NotTextError as error:
        raise InputError(f"{field}.where.{column}", f"row {number}: {error}") from None


def check_templates(spec: BenchmarkSpec, *, field: str) -> None:
    """Checks a benchmark's templates before anything is downloaded. `field` is the benchmark's.

    Raises:
        InputError: a syntax error, or the prompt or an option uses a name that is not a field.
    """
    templates = {"prompt": spec.prompt} | {
        "options" if isinstance(spec.options, str) else f"options.{i}": option
        for i, option in enumerate([spec.options] if isinstance(spec.options, str) else spec.options)
    }
    for split in ("train", "test"):
        rows = getattr(spec, split)
        if isinstance(rows, HeldOut):
            continue
        _Compiled(spec, rows, split, field)
        for name, text in templates.items():
            unknown = sorted(names_used(text) - set(rows.fields)) if rows.fields else []
            if unknown:
                raise InputError(
                    f"{field}.{name}", f"unknown field {unknown[0]!r}; {split}.fields has {sorted(rows.fields)}"
                )


class _Compiled:
    """The templates of one split, as functions of a row and its number."""

    def __init__(self, spec: BenchmarkSpec, rows: SplitRows, split: str, field: str):
        self.fields = {
            name: compile_value(text, field=f"{field}.{split}.fields.{name}") for name, text in rows.fields.items()
        }
        self.prompt = compile_template(spec.prompt, field=f"{field}.prompt")
        self.options = _compile_list(spec.options, f"{field}.options", least=1 if spec.free_answers else 2)
        self._gold = compile_template(rows.gold, field=f"{field}.{split}.gold")
        self._columns_of_gold = names_used(rows.gold)
        self.labels = None if spec.labels is None else _labels(spec.labels, f"{field}.labels")
        self.group = None if spec.group is None else compile_template(spec.group, field=f"{field}.group")

    def label(self, row: Row, number: int, columns: Collection[str]) -> str | None:
        """The gold label; None or "" if the row has no label.

        A row has no label if all columns that the template uses are null or empty, even if the template gives a text:
        `{{ label == 1 }}` would give False. Or if the template fails and one of them is null, empty or missing.

        Args:
            columns: the columns of all rows. A column that no row has is an error in the template.
        """
        used = [row.get(name) for name in self._columns_of_gold if name in columns]
        nothing = [value == "" or is_null(value) for value in used]
        if used and all(nothing):
            return None if all(map(is_null, used)) else ""
        try:
            return self._gold(row, number)
        except NullInputError:
            return None
        except InputError:
            if any(nothing):
                return None
            raise


def _compile_list(templates: list[str] | str, field: str, least: int = 2) -> Evaluate:
    """Compiles a list of templates, or one template that gives a list of at least `least` texts."""
    if isinstance(templates, list):
        compiled = [compile_template(text, field=f"{field}.{i}") for i, text in enumerate(templates)]
        if not any(map(is_template, templates)):
            return lambda row, number: templates
        return lambda row, number: [render(row, number) for render in compiled]
    evaluate = compile_value(templates, field=field)

    def several(row: Mapping[str, Any], number: int) -> list[str]:
        value = evaluate(row, number)
        if not isinstance(value, list | tuple) or len(value) < least:
            words = {1: "one", 2: "two"}[least]
            raise InputError(field, f"row {number}: the template must give a list of at least {words}, not {value!r}")
        try:
            return [text_of(one, f"number {i} of the list") for i, one in enumerate(value, start=1)]
        except NotTextError as error:
            raise InputError(field, f"row {number}: {error}") from None

    return several


def _labels(labels: list[str] | str, field: str) -> Evaluate:
    return _compile_list(labels, field) if isinstance(labels, str) else lambda row, number: labels


def examples(rows: list[Row], spec: BenchmarkSpec, split: Literal["train", "test"], *, field: str) -> SourceExamples:
    """The examples of one source: the rows that `where` selects, with prompts and gold options.

    A row without a label (null, -1 or empty) or with a repeated option is left out and counted. A repeated accepted
    answer is kept once. `field` is the benchmark's field in params.yaml.

    Raises:
        InputError: no row is left, a row lacks a column that a template uses, a value is not text, or a label is
            unknown.
    """
    templates = getattr(spec, split)
    compiled = _Compiled(spec, templates, split, field)
    selected = select(rows, templates.where, field=f"{field}.{split}")
    selected_examples: list[Example] = []
    names = names_used(spec.prompt) if fixed_options(spec) else set()  # else the rendered prompt is sent
    kinds: Kinds = {}
    sent: Row = {}
    left_out = Counter({BY_WHERE: len(rows) - len(selected)})
    columns = {name for row in rows for name in row}
    for number, row in selected:
        label = compiled.label(row, number, columns)
        if label is None:
            left_out[UNLABELLED] += 1
            continue
        values = {name: template(row, number) for name, template in compiled.fields.items()} or row
        options = compiled.options(values, number)
        if spec.free_answers:
            options, right = list(dict.fromkeys(options)), EVERY
        else:
            labels = compiled.labels(row, number) if compiled.labels else [str(i) for i in range(len(options))]
            if len(labels) != len(options):
                raise InputError(f"{field}.labels", f"row {number}: {len(labels)} labels for {len(options)} options")
            gold = _gold_of(label, labels)
            if not gold and compared(label) in MISSING:
                left_out[UNLABELLED] += 1
                continue
            if len(gold) != 1:
                problem = f"occurs {len(gold)} times in {labels}" if gold else f"is not one of {labels}"
                raise InputError(f"{field}.{split}.gold", f"row {number}: the label {label!r} {problem}")
            right = gold[0]
        text = compiled.prompt(values, number)
        if any("\ud800" <= character <= "\udfff" for part in (text, *options) for character in part):
            raise InputError(f"{field}.{split}", f"row {number}: contains half of a surrogate pair, which is not text")
        if any(not option.strip() for option in options):
            raise InputError(f"{field}.options", f"row {number}: an option is empty: {options}")
        if len(set(options)) < len(options):
            left_out[AMBIGUOUS] += 1
            continue
        group = compared(compiled.group(row, number)) if compiled.group else None
        add_kinds(kinds, values, names)
        sent = sent if selected_examples else as_sent(values, names)
        selected_examples.append(Example(number, text, right, tuple(options), group))
    if not selected_examples:
        raise InputError(f"{field}.{split}", f"is empty: {_why_empty(len(rows), left_out)}")
    return SourceExamples(selected_examples, left_out, kinds, sent)


def _gold_of(label: str, labels: list[str]) -> list[int]:
    """The indices of a label in the labels: by the text, or else by the number (1.0 equals 1)."""
    if label not in labels:
        label, labels = compared(label), [compared(one) for one in labels]
    return [i for i, one in enumerate(labels) if one == label]


def _why_empty(rows: int, left_out: Counter[str]) -> str:
    if left_out[UNLABELLED]:
        return f"{left_out[UNLABELLED]} of the source's {rows} rows have no label (null, -1 or empty)"
    return f"`where` selects no row of the source's {rows}"


def frame(examples: list[Example], split: str, *, chat: str | bool = False) -> pd.DataFrame:
    """Columns id (the split and the row's number in its source), prompt, options and gold; one row per example.

    With a chat template also a column `chat`, its date.
    """
    columns = {
        "id": [f"{split}-{example.number}" for example in examples],
        "prompt": [example.prompt for example in examples],
        "options": [list(example.options) for example in examples],
        "gold": np.array([example.gold for example in examples], dtype=np.int64),
    }
    return pd.DataFrame(columns | ({"chat": [chat] * len(examples)} if chat else {}))
