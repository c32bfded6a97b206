"""search: accuracy and gold margin of (layer, fraction) pairs on the adaptation set."""

from functools import partial

import pandas as pd

from tasks.benchmarks.table import encode_rows
from tasks.method.algorithm import search_grid
from tasks.method.grid import Grid
from tasks.method.options import Search
from tasks.method.scores import read_scores
from tasks.method.strategies import best_depths
from tasks.models.hashing import recorded_hash
from tasks.models.loading import load
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
    settings, scores = search_of(cell), read_scores(cell.scores)
    inputs = [recorded_hash(cell.model_dir), *map(sha256_file, (cell.samples, cell.scores))]
    with worker_pool(partial(adaptation_grid, cell)) as workers:
        products = workers.attribute("products")
        journal = Journal(cell.scratch / "search.jsonl", journal_key([*inputs, products]))
        sizes = workers.attribute("sizes")
        with progress("search", len(sizes) * (1 + len(scores.values))) as advance:
            run, precision = partial(run_parts, workers, journal=journal), cell.settings.precision.search
            frame, settled = search_grid(run, sizes, scores, settings, precision, advance)
    frame.attrs.update({"strategy": settings.strategy, "products": products} | settled.as_json())
    write_parquet(cell.grid, frame)
    journal.remove()


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
        raise InputError("search.cell", f"{settings.cell!r} is not in pipeline.cells; there are {sorted(listed)}")
    other = Cell(cell.root, listed[settings.cell].model, listed[settings.cell].benchmark, cell.settings)
    if not other.grid.is_file():
        command = f"dsm run --model {other.model} --benchmark {other.benchmark}"
        raise InputError("search.cell", f"{other.name} has no grid yet: run `{command}` first")
    if (depths := best_depths(pd.read_parquet(other.grid))) != settings.depths:
        problem = "is missing" if settings.depths is None else f"is not what the grid of {other.name} gives"
        raise InputError("search.depths", f"{problem}: write depths: {depths}")
    return settings


def adaptation_grid(cell: Cell) -> Grid:
    """The grid on the adaptation set."""
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(pd.DataFrame(read_jsonl(cell.samples)), loaded.tokenizer, stack.context)
    scores = read_scores(cell.scores)
    return Grid(stack, rows.encoded, rows.gold, scores.ranked, scores.projection)


if __name__ == "__main__":
    run_step(search, description=__doc__)
