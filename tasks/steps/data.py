"""data: fetch a benchmark's rows, render the prompts and split them."""

from tasks.benchmarks.prepare import prepare
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.files import replacing, write_json


def store(cell: Cell) -> None:
    """Writes data/benchmarks/<benchmark>/: train.parquet, test.parquet, and columns.json if a column is not text."""
    prepared = prepare(cell.benchmark, cell.benchmark_spec, cell.root)
    with replacing(cell.benchmark_dir) as target:
        target.mkdir()
        for split, rows in (("train", prepared.train), ("test", prepared.test)):
            rows.to_parquet(target / f"{split}.parquet", index=False)
        if prepared.columns:
            write_json(target / cell.columns.name, prepared.columns)
    print(prepared.summary)


if __name__ == "__main__":
    run_step(store, description=__doc__)
