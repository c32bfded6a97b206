"""search: accuracy and gold margin of (layer, fraction) pairs on the adaptation set."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.benchmarks.table import encode_rows
from tasks.method.algorithm import grid_on, search_grid
from tasks.method.criteria import ranked_by
from tasks.method.grid import Grid
from tasks.method.options import Search
from tasks.method.scores import read_scores
from tasks.method.strategies import best_depths
from tasks.models.hashing import recorded_hash
from tasks.models.loading import load
from tasks.models.products import Precision
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_jsonl, sha256_file, write_parquet
from tasks.runtime.journal import Journal, journal_key
from tasks.runtime.progress import progress
from tasks.runtime.work import run_parts, worker_pool


def search(cell: Cell) -> None:
    """Writes the grid. It uses the labels of the adaptation set and no test row."""
    settings, precision = search_of(cell), cell.settings.precision.search
    if settings.reads_unlabeled and not read_jsonl(cell.unlabeled):
        problem = f"{settings.criterion} needs train rows outside the adaptation set, and none fit; use paper"
        raise InputError("search.criterion", problem)
    unranked, how = searched(cell, cell.samples, settings, precision)
    others = searched(cell, cell.unlabeled, settings, how["precision"])[0] if settings.reads_unlabeled else None
    grid = ranked_by(settings.criterion, unranked, others, [row["gold"] for row in read_jsonl(cell.samples)])
    grid.attrs.update({"strategy": settings.strategy, "criterion": settings.criterion} | how)
    write_parquet(cell.grid, grid)
    for path in (cell.samples, cell.unlabeled):
        journal_of(cell, path).unlink(missing_ok=True)


def searched(cell: Cell, rows: Path, settings: Search, precision: Precision) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The grid on some rows, and how it was computed. Its journal stays."""
    scores = read_scores(cell.scores)
    inputs = [recorded_hash(cell.model_dir), *map(sha256_file, (rows, cell.scores)), settings.criterion]
    with worker_pool(partial(grid_of, cell, rows)) as workers:
        products = workers.attribute("products")
        journal = Journal(journal_of(cell, rows), journal_key([*inputs, products]))
        sizes = workers.attribute("sizes")
        with progress("search", len(sizes) * (1 + len(scores.values))) as advance:
            run = partial(run_parts, workers, journal=journal)
            frame, settled = search_grid(run, sizes, scores, settings, precision, advance)
    return frame, {"products": products} | settled.as_json()


def journal_of(cell: Cell, rows: Path) -> Path:
    """Where the finished parts of the grid on these rows are kept."""
    return cell.scratch / ("search.jsonl" if rows == cell.samples else f"search-{rows.name}")


def search_of(cell: Cell) -> Search:
    """The search of a cell, with the depths of `from_cell` checked. The cell that it names is searched exhaustively.

    Raises:
        InputError: the other cell is not known or has no grid, or its grid gives other depths; the message has them.
    """
    settings = cell.settings.search
    if settings.strategy != "from_cell":
        return settings
    if settings.cell == cell.name:
        return settings.model_copy(update={"strategy": "exhaustive"})
    listed = cell.settings.pipeline.cells
    if settings.cell not in listed:
        raise InputError("search.cell", f"{settings.cell!r} is not in pipeline.cells; choose from {sorted(listed)}")
    other = Cell(cell.root, listed[settings.cell].model, listed[settings.cell].benchmark, cell.settings)
    if not other.grid.is_file():
        command = f"dsm run --model {other.model} --benchmark {other.benchmark}"
        raise InputError("search.cell", f"{other.name} has no grid yet: run `{command}` first")
    if (depths := best_depths(pd.read_parquet(other.grid))) != settings.depths:
        problem = "is missing" if settings.depths is None else f"is not what the grid of {other.name} gives"
        raise InputError("search.depths", f"{problem}: write depths: {depths}")
    return settings


def grid_of(cell: Cell, path: Path) -> Grid:
    """The grid on the adaptation set, or on rows without labels."""
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(pd.DataFrame(read_jsonl(path)), loaded.tokenizer, stack.context)
    return grid_on(stack, loaded.tokenizer, rows, read_scores(cell.scores), cell.settings.search)


if __name__ == "__main__":
    run_step(search, description=__doc__)
