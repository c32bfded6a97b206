"""Train and test rows of a benchmark that params.yaml declares."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.benchmarks.benchmark_spec import EVERY, BenchmarkSpec, HeldOut
from tasks.benchmarks.row_files import Row, read_rows
from tasks.benchmarks.rows import AMBIGUOUS, BY_WHERE, UNLABELLED, Example, check_templates, examples, frame
from tasks.benchmarks.splits import splits
from tasks.runtime.files import existing_path
from tasks.sources.fetch import fetch_file, hub_rows
from tasks.sources.kinds import HubSource, LocalSource, PathSource, RowsSource, WheelSource


@dataclass(frozen=True)
class Prepared:
    """The rows of a benchmark, rendered and split.

    No prompt occurs twice in a split or in both splits. Test rows are ordered by hashes.

    Attributes:
        train: one row per example, with the columns `id`, `prompt`, `options` and `gold`.
        test: the same columns.
        summary: one line with the numbers of rows that were read, left out and kept.
        columns: the kinds of the prompt's columns and an example of their values; empty if all are texts.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    summary: str
    columns: dict[str, Any]


def prepare(name: str, spec: BenchmarkSpec, root: Path) -> Prepared:
    """Fetches the rows of the benchmark `name` of the project in `root`, renders its prompts and splits them.

    Raises:
        InputError: a source cannot be read, or a row or template is wrong.
    """
    field = f"benchmarks.{name}"
    check_templates(spec, field=field)
    with tempfile.TemporaryDirectory() as work:
        rows = _fetch(spec.train.source, root, f"{field}.train.source", Path(work))
        train_source = examples(rows, spec, "train", field=field)
        read, kept, left_out = len(rows), len(train_source.examples), train_source.left_out
        kinds, test_examples = train_source.kinds, None
        if not isinstance(spec.test, HeldOut):
            rows = _fetch(spec.test.source, root, f"{field}.test.source", Path(work))
            test_source = examples(rows, spec, "test", field=field)
            test_examples = test_source.examples
            read, kept, left_out = read + len(rows), kept + len(test_examples), left_out + test_source.left_out
            kinds = {name: kinds[name] | test_source.kinds[name] for name in kinds}
    train, test = splits(spec, train_source.examples, test_examples, field=field)
    parts = [f"{left_out[BY_WHERE]} {BY_WHERE}"]
    parts += [f"{left_out[reason]} {reason} dropped" for reason in (UNLABELLED, AMBIGUOUS) if left_out[reason]]
    parts += [f"{kept - len(train) - len(test)} repeated prompts dropped"]
    summary = f"{name}: {read} rows read, {', '.join(parts)}; train {_counted(train)}, test {_counted(test)}"
    columns = {"kinds": {name: sorted(of) for name, of in kinds.items()}, "example": train_source.sent}
    only_texts = all(of == {"text"} for of in kinds.values())
    return Prepared(
        train=frame(train, "train", chat=spec.chat),
        test=frame(test, "test", chat=spec.chat),
        summary=summary,
        columns={} if only_texts else columns,
    )


def check_rows(name: str, spec: BenchmarkSpec, root: Path) -> None:
    """Reads, renders and splits the rows of a benchmark as `prepare` does, if all its sources are local.

    Raises:
        InputError: a file is absent or has other bytes, or a row or template does not fit.
    """
    splits_of = [spec.train] if isinstance(spec.test, HeldOut) else [spec.train, spec.test]
    if all(isinstance(rows.source, LocalSource | PathSource) for rows in splits_of):
        prepare(name, spec, root)


def _fetch(source: RowsSource, root: Path, field: str, work: Path) -> list[Row]:
    if isinstance(source, HubSource):
        return hub_rows(source, field=field)
    if isinstance(source, LocalSource):
        files = [(name, existing_path(name, field=f"{field}.paths", root=root)) for name in source.paths]
        return [row for name, path in files for row in read_rows(path, name=name, field=field)]
    name = source.file if isinstance(source, WheelSource) else source.path
    return read_rows(fetch_file(source, field=field, root=root, work=work), name=name, field=field)


def _counted(split: list[Example]) -> str:
    """The number of rows and of each gold option, which is named by its text if all rows share the options."""
    if split[0].gold == EVERY:
        return f"{len(split)} with free answers"
    counts = Counter(example.gold for example in split)
    width = max(len(example.options) for example in split)
    shared = len({example.options for example in split}) == 1
    names = [repr(option) for option in split[0].options] if shared else [f"option {i + 1}" for i in range(width)]
    return f"{len(split)} (" + ", ".join(f"{counts[i]} {name}" for i, name in enumerate(names)) + ")"
