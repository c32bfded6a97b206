"""search: accuracy and gold margin of (layer, fraction) pairs on the adaptation set."""

from functools import partial

import pandas as pd

from tasks.benchmarks.table import encode_rows
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import read_jsonl, sha256_file, write_parquet
from tasks.pipeline.journal import Journal, journal_key
from tasks.pipeline.progress import progress
from tasks.pipeline.step import run_step
from tasks.pipeline.work import crew, run_parts
from tasks.pruning.grid import Grid, every_pair, parts_of
from tasks.pruning.masks import count, read_ranking
from tasks.pruning.precision import settle
from tasks.pruning.searching import Evaluation
from tasks.pruning.strategies import STRATEGIES


def search(cell: Cell) -> None:
    """Writes the grid. Its labels are those of the adaptation set; no test row is seen."""
    settings = cell.settings.search
    scores = read_ranking(cell.scores).values
    layers, width = scores.shape
    if not count(settings.fractions[0], width):
        raise InputError(
            "search.fractions", f"{settings.fractions[0]} of {width} neurons is none; use larger fractions"
        )
    inputs = [sha256_directory(cell.model_dir), *map(sha256_file, (cell.samples, cell.scores))]
    journal = Journal(cell.scratch / "search.jsonl", journal_key(inputs))
    with crew(partial(adaptation_grid, cell)) as workers:
        sizes, run = workers.ask("sizes"), partial(run_parts, workers, journal=journal)
        every = parts_of(every_pair(layers, settings.fractions), len(sizes))
        settled = settle(cell.settings.precision.search, every, run, width)
        with progress("search", len(every)) as advance:
            evaluate = Evaluation(partial(run, advance=advance), sizes, settled.precision, width)
            frame = STRATEGIES[settings.strategy](scores, settings.fractions, evaluate)
    frame.attrs.update({"strategy": settings.strategy} | settled.as_json())
    write_parquet(cell.grid, frame)
    journal.remove()


def adaptation_grid(cell: Cell) -> Grid:
    """The grid on the adaptation set."""
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(pd.DataFrame(read_jsonl(cell.samples)), loaded.tokenizer, stack.context)
    ranking = read_ranking(cell.scores)
    return Grid(stack, rows.encoded, rows.gold, ranking.values, ranking.projection)


if __name__ == "__main__":
    run_step(search, description=__doc__)
