"""A benchmark's rows: from a JSONL, CSV or Parquet file to a train and a test split with rendered prompts."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.benchmarks.templates import Render, compile_template, names_used
from tasks.pipeline.errors import InputError
from tasks.pipeline.settings import BenchmarkSpec, HeldOut, Rows

Row = dict[str, Any]  # column -> value


@dataclass(frozen=True)
class Example:
    """One row of a benchmark: `number` counts the rows of its source from 1, `gold` is an index into the options."""

    number: int
    prompt: str
    gold: int


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
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise InputError(field, f"{name}: {error}") from None


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    # Lines end at \n alone: real rows contain U+0085 and U+2028.
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        rows.append(row)
    return rows


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
    rows: list[Row] = pq.ParquetFile(path).read().to_pylist()
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
        InputError: a syntax error, or a name in the prompt that is none of the fields.
    """
    compile_template(spec.prompt, field=f"{field}.prompt")
    for split in ("train", "test"):
        templates = getattr(spec, split)
        if isinstance(templates, HeldOut):
            continue
        _compile(templates, field=f"{field}.{split}")
        if unknown := sorted(names_used(spec.prompt) - set(templates.fields)):
            known = sorted(templates.fields)
            raise InputError(f"{field}.prompt", f"unknown field {unknown[0]!r}; {split}.fields has {known}")


def _compile(templates: Rows, *, field: str) -> tuple[dict[str, Render], Render]:
    fields = {name: compile_template(text, field=f"{field}.fields.{name}") for name, text in templates.fields.items()}
    return fields, compile_template(templates.gold, field=f"{field}.gold")


def examples(rows: list[Row], spec: BenchmarkSpec, split: Literal["train", "test"], *, field: str) -> list[Example]:
    """The rows of one source that its `where` keeps, with their prompts and gold options. `field` is the benchmark's.

    Raises:
        InputError: no row is left, a template asks for a column that a row does not have, or a label is not known.
    """
    templates = getattr(spec, split)
    prompt = compile_template(spec.prompt, field=f"{field}.prompt")
    field = f"{field}.{split}"
    fields, gold = _compile(templates, field=field)
    index = {label: i for i, label in enumerate(spec.labels)}
    found = []
    for number, row in select(rows, templates.where, field=field):
        label = gold(row, number)
        if label not in index:
            raise InputError(f"{field}.gold", f"row {number}: the label {label!r} is not one of {spec.labels}")
        text = prompt({name: template(row, number) for name, template in fields.items()}, number)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(field, f"row {number}: half of a surrogate pair, which is not text")
        found.append(Example(number, text, index[label]))
    if not found:
        raise InputError(field, f"is empty: the source has {len(rows)} rows, and none is left after `where`")
    return found


# -- examples to splits -----------------------------------------------------------------------------------------------


def splits(
    spec: BenchmarkSpec, train: list[Example], test: list[Example] | None, *, field: str
) -> tuple[list[Example], list[Example]]:
    """(train, test) in which no prompt occurs twice; `test` is None if it is to be drawn from `train`.

    Of several examples with one prompt the first is kept, whatever the gold options of the others; a prompt of both
    splits stays in test. Test comes in random order, since files are often sorted by label and `limits` takes the
    first rows; train keeps its order. `field` is the benchmark's place in params.yaml.

    Raises:
        InputError: nothing would be left for train.
    """
    train = _first_of_each_prompt(train)
    if isinstance(spec.test, HeldOut):
        if spec.test.split >= len(train):
            raise InputError(f"{field}.test.split", f"must be less than {len(train)}, the number of different prompts")
        test, seed, size = train, spec.test.seed, spec.test.split
    else:
        test, seed = _first_of_each_prompt(test or []), 0
        size = len(test)
    order = np.random.default_rng(seed).permutation(len(test))
    test = [test[i] for i in order[:size]]
    tested = {example.prompt for example in test}
    train = [example for example in train if example.prompt not in tested]
    if not train:
        raise InputError(f"{field}.train", "is empty: the test split has every prompt of it too")
    return train, test


def _first_of_each_prompt(found: list[Example]) -> list[Example]:
    first: dict[str, Example] = {}
    for example in found:
        first.setdefault(example.prompt, example)
    return list(first.values())


def frame(found: list[Example], options: list[str], split: str) -> pd.DataFrame:
    """Columns id (the split and the row's number in its source), prompt, options and gold; one row per example."""
    return pd.DataFrame(
        {
            "id": [f"{split}-{example.number}" for example in found],
            "prompt": [example.prompt for example in found],
            "options": [options] * len(found),
            "gold": np.array([example.gold for example in found], dtype=np.int64),
        }
    )
