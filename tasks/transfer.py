"""transfer: would the test set have chosen the same pair as the ten examples did? (2507.09185 Appendix D)"""

import math
from functools import partial
from typing import Any

import pandas as pd

from tasks.benchmarks.table import encode_rows, read_split
from tasks.evidence.statistics import spearman
from tasks.method.algorithm import search_grid
from tasks.method.grid import UNPRUNED, Grid, empty_grid
from tasks.method.recipe import Recipe, read_recipe
from tasks.method.scores import read_scores
from tasks.models.hashing import recorded_hash
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.files import sha256_file, write_json, write_parquet
from tasks.pipeline.journal import Journal, journal_key
from tasks.pipeline.progress import progress
from tasks.pipeline.settings import Search
from tasks.pipeline.step import run_step
from tasks.pipeline.work import crew, run_parts


def transfer(cell: Cell) -> None:
    """Writes the grid on test rows and how it compares with that of the adaptation set. Nothing is chosen by it."""
    limit = cell.benchmark_spec.limits.transfer
    if not limit:
        write_parquet(cell.transfer_grid, empty_grid())
        write_json(cell.transfer, {"n": 0})
        return
    search = Search(fractions=cell.settings.search.fractions)  # every pair, whatever the search looked at
    scores = read_scores(cell.scores)
    inputs = [recorded_hash(cell.model_dir), *map(sha256_file, (cell.test, cell.scores)), search.fractions, limit]
    with crew(partial(test_grid, cell)) as workers:
        products = workers.ask("products")
        journal = Journal(cell.scratch / "transfer.jsonl", journal_key([*inputs, products]))
        sizes = workers.ask("sizes")
        with progress("transfer", len(sizes) * (1 + len(scores.values))) as advance:
            run, precision = partial(run_parts, workers, journal=journal), cell.settings.precision.transfer
            frame, settled = search_grid(run, sizes, scores, search, precision, advance)
    write_parquet(cell.transfer_grid, frame)
    result = compare(pd.read_parquet(cell.grid), frame, read_recipe(cell.pruned), sum(sizes))
    write_json(cell.transfer, result | {"precision": settled.as_json() | {"products": products}})
    journal.remove()


def test_grid(cell: Cell) -> Grid:
    """The grid on the first test rows."""
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(read_split(cell.test, cell.benchmark_spec.limits.transfer), loaded.tokenizer, stack.context)
    scores = read_scores(cell.scores)
    return Grid(stack, rows.encoded, rows.gold, scores.ranked, scores.projection)


def compare(adaptation: pd.DataFrame, test: pd.DataFrame, recipe: Recipe, n: int) -> dict[str, Any]:
    """Rank correlation of the two surfaces, and how the chosen pair stands on the test surface.

    Returns:
        `spearman` and its p over all pairs (None where a surface is flat); `regret`, the best test accuracy minus that
        of the chosen pair; `percentile`, the share in % of the pairs whose test accuracy is at most the chosen one's.
    """
    both = adaptation.merge(test, on=["layer", "fraction"], suffixes=("_adaptation", ""), validate="one_to_one")
    pairs = both[both.layer != UNPRUNED]
    rho, p = spearman(pairs.accuracy_adaptation, pairs.accuracy)
    chosen = pairs[(pairs.layer == recipe.layer) & (pairs.fraction == recipe.fraction)].iloc[0]
    best = pairs.sort_values("accuracy", ascending=False, kind="stable").iloc[0]
    return {
        "n": n,
        "spearman": None if math.isnan(rho) else rho,
        "spearman_p": None if math.isnan(p) else p,
        "regret": float(best.accuracy - chosen.accuracy),
        "percentile": float(100 * (pairs.accuracy <= chosen.accuracy).mean()),
        "chosen": _pair(chosen),
        "best": _pair(best),
        "base_accuracy": float(both[both.layer == UNPRUNED].iloc[0].accuracy),
    }


def _pair(row: Any) -> dict[str, Any]:
    return {"layer": int(row.layer), "fraction": float(row.fraction), "accuracy": float(row.accuracy)}


if __name__ == "__main__":
    run_step(transfer, description=__doc__)
