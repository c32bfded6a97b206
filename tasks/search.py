"""search: accuracy and gold margin of (layer, fraction) pairs on the adaptation set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from tasks.benchmarks.table import encode_rows
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.products import Precision
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import read_jsonl, sha256_file, write_parquet
from tasks.pipeline.journal import Journal, journal_key
from tasks.pipeline.progress import progress
from tasks.pipeline.step import run_step
from tasks.pipeline.work import crew, run_parts
from tasks.pruning.grid import Grid, Pairs, assemble, every_pair, parts_of
from tasks.pruning.masks import count, read_ranking
from tasks.pruning.precision import Run, settle
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
            evaluate = _Evaluate(partial(run, advance=advance), sizes, settled.precision, width)
            frame = STRATEGIES[settings.strategy](scores, settings.fractions, evaluate)
    frame.attrs.update({"strategy": settings.strategy} | settled.as_json())
    write_parquet(cell.grid, frame)
    journal.remove()


@dataclass
class _Evaluate:
    """What a strategy asks (`tasks.pruning.strategies.Evaluate`)."""

    run: Run
    sizes: Sequence[int]
    precision: Precision
    width: int

    def __call__(self, pairs: Pairs, pack: int | None = None) -> pd.DataFrame:
        parts = parts_of(pairs, len(self.sizes), self.precision)
        wanted = [part for part in parts if pack in (None, part.pack)]
        rows = sum(self.sizes) if pack is None else self.sizes[pack]
        return assemble(self.run(wanted), rows, self.width)


def adaptation_grid(cell: Cell) -> Grid:
    """The grid on the adaptation set."""
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(pd.DataFrame(read_jsonl(cell.samples)), loaded.tokenizer, stack.context)
    ranking = read_ranking(cell.scores)
    return Grid(stack, rows.encoded, rows.gold, ranking.values, ranking.projection)


if __name__ == "__main__":
    run_step(search, description=__doc__)
