"""A benchmark's rows: from a JSONL, CSV or Parquet file to a train and a test split with rendered prompts."""

import csv
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.benchmarks.columns import Kinds, add_kinds, as_sent
from tasks.benchmarks.templates import Evaluate, compile_template, compile_value, fixed_options, is_template, names_used
from tasks.pipeline.declared import BenchmarkSpec, HeldOut, Rows
from tasks.pipeline.errors import InputError

Row = dict[str, Any]  # column -> value

# What a Parquet file may hold: repeated values take no room in it, but do in memory.
VALUES_LIMIT = 20_000_000
BYTES_LIMIT = 2 << 30

MISSING = ("-1", "")  # what data sets put where a label is not published
BY_WHERE, UNLABELLED, AMBIGUOUS = "left out by `where`", "without a label", "with an option twice"  # reasons


@dataclass(frozen=True)
class Example:
    """One row of a benchmark: `number` counts the rows of its source from 1, `gold` is an index into the options."""

    number: int
    prompt: str
    gold: int
    options: tuple[str, ...] = ()
    group: str | None = None

    @property
    def asked(self) -> tuple[str, tuple[str, ...]]:
        """What makes two examples the same: two with one prompt may ask for other options."""
        return self.prompt, self.options


@dataclass(frozen=True)
class Found:
    """The examples of one source, and how many of its rows are none, by reason.

    Attributes:
        kinds: what the names that the prompt uses stand for, where a served model is asked with them.
        sent: these names of the first example, as they are sent.
    """

    examples: list[Example]
    left_out: Counter[str]
    kinds: Kinds
    sent: Row


# -- files ------------------------------------------------------------------------------------------------------------


def read_rows(path: Path, *, name: str, field: str) -> list[Row]:
    """All rows of a file, by its ending. `name` is what the user calls the file, `field` its source in params.yaml.

    Raises:
        InputError: the ending is not known, or the file is damaged.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(field, f"{name} is not a .jsonl, .csv or .parquet file")
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise InputError(field, f"{name} is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise InputError(field, f"{name} is nested too deeply") from None
    except (ValueError, OverflowError, csv.Error, pa.ArrowException) as error:
        raise InputError(field, f"{name}: {error}") from None
    except OSError as error:  # pyarrow says so of damage too, without a number
        raise InputError(field, f"{name}: {error.strerror or error}") from None


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    # Lines end at \n alone: real rows contain U+0085 and U+2028.
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats, parse_constant=_no_number)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        rows.append(row)
    return rows


def _without_repeats(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name is there twice: {sorted(name for name, _ in pairs)}")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _read_csv(path: Path) -> list[Row]:
    """Every value is text: a CSV file has no types, and a guessed one turns "007" into 7."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        header = next(lines, [])
        if len(set(header)) != len(header):
            raise ValueError(f"two columns have the same name: {header}")
        rows = []
        for values in lines:
            if not values:
                continue
            if len(values) != len(header):
                raise ValueError(f"line {lines.line_num} has {len(values)} values for {len(header)} columns")
            rows.append(dict(zip(header, values, strict=True)))
    return rows


def _read_parquet(path: Path) -> list[Row]:
    file = pq.ParquetFile(path)
    if (values := file.metadata.num_rows * file.metadata.num_columns) > VALUES_LIMIT:
        raise ValueError(f"holds {values} values; {VALUES_LIMIT} are the limit")
    rows: list[Row] = []
    size = 0
    for batch in file.iter_batches(batch_size=1024):
        size += batch.nbytes
        if size > BYTES_LIMIT:
            raise ValueError(f"holds more than {BYTES_LIMIT} bytes")
        rows += batch.to_pylist()
    return rows


# -- rows to examples -------------------------------------------------------------------------------------------------


def select(rows: list[Row], where: dict[str, list[Any]], *, field: str) -> list[tuple[int, Row]]:
    """The rows, with their numbers from 1, whose columns have one of the wanted values; a row without one is left out.

    Values are compared as the text that a template would print, since a CSV file has nothing but text.

    Raises:
        InputError: no row has a column of that name.
    """
    for column in where:
        if rows and not any(column in row for row in rows):
            raise InputError(
                f"{field}.where.{column}", f"no such column; there are {sorted({name for row in rows for name in row})}"
            )
    wanted = {column: {str(value) for value in values} for column, values in where.items()}
    return [
        (number, row)
        for number, row in enumerate(rows, start=1)
        if all(column in row and str(row[column]) in values for column, values in wanted.items())
    ]


def check_templates(spec: BenchmarkSpec, *, field: str) -> None:
    """Finds what is wrong with a benchmark's templates before anything is downloaded. `field` is the benchmark's.

    Raises:
        InputError: a syntax error, or a name in the prompt or an option that is none of the fields.
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

    def __init__(self, spec: BenchmarkSpec, rows: Rows, split: str, field: str):
        self.fields = {
            name: compile_value(text, field=f"{field}.{split}.fields.{name}") for name, text in rows.fields.items()
        }
        self.prompt = compile_template(spec.prompt, field=f"{field}.prompt")
        self.options = _compile_list(spec.options, f"{field}.options")
        self.gold = compile_template(rows.gold, field=f"{field}.{split}.gold")
        self.labels = None if spec.labels is None else _labels(spec.labels, f"{field}.labels")
        self.group = None if spec.group is None else compile_template(spec.group, field=f"{field}.group")


def _compile_list(templates: list[str] | str, field: str) -> Evaluate:
    """One template that gives a list of at least two, or a list of templates."""
    if isinstance(templates, list):
        compiled = [compile_template(text, field=f"{field}.{i}") for i, text in enumerate(templates)]
        if not any(map(is_template, templates)):
            return lambda row, number: templates
        return lambda row, number: [render(row, number) for render in compiled]
    evaluate = compile_value(templates, field=field)

    def several(row: Mapping[str, Any], number: int) -> list[str]:
        value = evaluate(row, number)
        if not isinstance(value, list | tuple) or len(value) < 2:
            raise InputError(field, f"row {number}: the template must give a list of two or more, not {value!r}")
        return [str(one) for one in value]

    return several


def _labels(labels: list[str] | str, field: str) -> Evaluate:
    return _compile_list(labels, field) if isinstance(labels, str) else lambda row, number: labels


def examples(rows: list[Row], spec: BenchmarkSpec, split: Literal["train", "test"], *, field: str) -> Found:
    """The rows of one source that its `where` keeps, with their prompts and gold options. `field` is the benchmark's.

    A row whose label is missing, or that has an option twice, is left out and counted.

    Raises:
        InputError: no row is left, a template asks for a column that a row does not have, or a label is not known.
    """
    templates = getattr(spec, split)
    compiled = _Compiled(spec, templates, split, field)
    selected = select(rows, templates.where, field=f"{field}.{split}")
    found: list[Example] = []
    names = names_used(spec.prompt) if fixed_options(spec) else set()  # else the whole prompt is sent
    kinds: Kinds = {}
    sent: Row = {}
    left_out = Counter({BY_WHERE: len(rows) - len(selected)})
    for number, row in selected:
        label = compiled.gold(row, number)
        values = {name: template(row, number) for name, template in compiled.fields.items()} or row
        options = compiled.options(values, number)
        labels = compiled.labels(row, number) if compiled.labels else [str(i) for i in range(len(options))]
        if len(labels) != len(options):
            raise InputError(f"{field}.labels", f"row {number}: {len(labels)} for {len(options)} options")
        if label not in labels:
            if label in MISSING:
                left_out[UNLABELLED] += 1
                continue
            raise InputError(f"{field}.{split}.gold", f"row {number}: the label {label!r} is not one of {labels}")
        text = compiled.prompt(values, number)
        if any("\ud800" <= character <= "\udfff" for part in (text, *options) for character in part):
            raise InputError(f"{field}.{split}", f"row {number}: half of a surrogate pair, which is not text")
        if any(not option.strip() for option in options):
            raise InputError(f"{field}.options", f"row {number}: an option is empty: {options}")
        if len(set(options)) < len(options):
            left_out[AMBIGUOUS] += 1
            continue
        group = compiled.group(row, number) if compiled.group else None
        add_kinds(kinds, values, names)
        sent = sent if found else as_sent(values, names)
        found.append(Example(number, text, labels.index(label), tuple(options), group))
    if not found:
        raise InputError(f"{field}.{split}", f"is empty: {_why_empty(len(rows), left_out)}")
    return Found(found, left_out, kinds, sent)


def _why_empty(rows: int, left_out: Counter[str]) -> str:
    if left_out[UNLABELLED]:
        return f"{left_out[UNLABELLED]} of the source's {rows} rows have no label (-1 or nothing): none is published"
    return f"the source has {rows} rows, and none is left after `where`"


# -- examples to splits -----------------------------------------------------------------------------------------------


def splits(
    spec: BenchmarkSpec, train: list[Example], test: list[Example] | None, *, field: str
) -> tuple[list[Example], list[Example]]:
    """(train, test) in which no prompt occurs twice; `test` is None if it is to be drawn from `train`.

    Of several examples with one prompt (and the same options) the first is kept, whatever the gold options of the
    others; a prompt of both splits stays in test, and so does a group. Test comes in random order, since files are
    often sorted by label and `limits` takes the first rows; train keeps its order. `field` is the benchmark's place in
    params.yaml.

    Raises:
        InputError: nothing would be left for train or test.
    """
    train = _first_of_each(train)
    if isinstance(spec.test, HeldOut):
        if spec.test.split >= len(train):
            raise InputError(f"{field}.test.split", f"must be less than {len(train)}, the number of different prompts")
        test = _drawn(train, spec.test)
        if not test:
            raise InputError(f"{field}.test.split", f"every group has more than {spec.test.split} rows")
    else:
        test = _shuffled(_first_of_each(test or []), 0)
    tested = {example.asked for example in test}
    groups = {example.group for example in test} - {None}
    train = [example for example in train if example.asked not in tested and example.group not in groups]
    if not train:
        raise InputError(f"{field}.train", "is empty: the test split has every prompt of it too")
    return train, test


def _drawn(found: list[Example], held: HeldOut) -> list[Example]:
    """The held-out rows in random order; a group is taken whole, if it fits."""
    shuffled = _shuffled(found, held.seed)
    sizes = Counter(example.group for example in found)
    room, taken = held.split, set()
    for example in shuffled:
        if example.group is not None and example.group not in taken and sizes[example.group] <= room:
            taken.add(example.group)
            room -= sizes[example.group]
    return [example for example in shuffled if example.group in taken] if taken else _ungrouped(shuffled, held.split)


def _ungrouped(shuffled: list[Example], size: int) -> list[Example]:
    return [example for example in shuffled if example.group is None][:size]


def _shuffled(found: list[Example], seed: int) -> list[Example]:
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def _first_of_each(found: list[Example]) -> list[Example]:
    first: dict[tuple[str, tuple[str, ...]], Example] = {}
    for example in found:
        first.setdefault(example.asked, example)
    return list(first.values())


def frame(found: list[Example], split: str, *, chat: bool = False) -> pd.DataFrame:
    """Columns id (the split and the row's number in its source), prompt, options and gold; one row per example.

    A column `chat` only where it is true, so that the files of other benchmarks stay as they were.
    """
    columns = {
        "id": [f"{split}-{example.number}" for example in found],
        "prompt": [example.prompt for example in found],
        "options": [list(example.options) for example in found],
        "gold": np.array([example.gold for example in found], dtype=np.int64),
    }
    return pd.DataFrame(columns | ({"chat": [True] * len(found)} if chat else {}))
