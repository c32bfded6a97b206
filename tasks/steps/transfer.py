"""transfer: would the test set have chosen the same pair as the ten examples did? (2507.09185 Appendix D)"""

from functools import partial

import pandas as pd

from tasks.benchmarks.table import encode_rows, read_split
from tasks.evidence.outcomes import compare_grids
from tasks.method.algorithm import search_grid
from tasks.method.grid import Grid, empty_grid
from tasks.method.options import Search
from tasks.method.recipe import read_recipe
from tasks.method.scores import read_scores
from tasks.models.hashing import recorded_hash
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.files import sha256_file, write_json, write_parquet
from tasks.runtime.journal import Journal, journal_key
from tasks.runtime.progress import progress
from tasks.runtime.work import run_parts, worker_pool


def transfer(cell: Cell) -> None:
    """Writes the grid on test rows and its comparison with the grid on the adaptation set. It chooses nothing."""
    limit = cell.benchmark_spec.limits.transfer
    if not limit:
        write_parquet(cell.transfer_grid, empty_grid())
        write_json(cell.transfer, {"n": 0})
        return
    search = Search(fractions=cell.settings.search.fractions)  # all pairs, for every search strategy
    scores = read_scores(cell.scores)
    inputs = [recorded_hash(cell.model_dir), *map(sha256_file, (cell.test, cell.scores)), search.fractions, limit]
    with worker_pool(partial(test_grid, cell)) as workers:
        products = workers.attribute("products")
        journal = Journal(cell.scratch / "transfer.jsonl", journal_key([*inputs, products]))
        sizes = workers.attribute("sizes")
        with progress("transfer", len(sizes) * (1 + len(scores.values))) as advance:
            run, precision = partial(run_parts, workers, journal=journal), cell.settings.precision.transfer
            frame, settled = search_grid(run, sizes, scores, search, precision, advance)
    write_parquet(cell.transfer_grid, frame)
    result = compare_grids(pd.read_parquet(cell.grid), frame, read_recipe(cell.pruned), sum(sizes))
    write_json(cell.transfer, result | {"precision": settled.as_json() | {"products": products}})
    journal.remove()


def test_grid(cell: Cell) -> Grid:
    """The grid on the first test rows."""
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(read_split(cell.test, cell.benchmark_spec.limits.transfer), loaded.tokenizer, stack.context)
    scores = read_scores(cell.scores)
    return Grid(stack, rows.encoded, rows.gold, scores.ranked, scores.projection)


if __name__ == "__main__":
    run_step(transfer, description=__doc__)
