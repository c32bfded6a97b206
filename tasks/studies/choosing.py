"""Study `choice`: which pairs other selection criteria would have chosen, and their accuracy on test rows.

The log-probabilities of every pair are computed once, on rows of the train split and on test rows; every criterion is
applied to them with every draw of ten labeled rows. The plan of the comparison is docs/choice.md.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.benchmarks.table import Rows
from tasks.evidence.statistics import mcnemar, standard_error
from tasks.method.adaptation_set import draw
from tasks.method.algorithm import compute_here
from tasks.method.criteria import CRITERIA, Floats, Seen, choose_index, normalised, right
from tasks.method.grid import Grid, parts_of
from tasks.method.options import Adaptation, Search
from tasks.method.pairs import every_pair
from tasks.method.precision import settle
from tasks.models.products import Precision
from tasks.pipeline.runs import StudyRun
from tasks.studies.context import Record, StudyContext

LABELED = 10  # rows whose labels a criterion may use
LEVEL = 0.05  # of the exact McNemar tests that say whether a choice does harm


def pool(context: StudyContext) -> Rows:
    """Train rows outside the adaptation set, in the order in which adaptation sets are drawn."""
    left = context.train[~context.train["id"].isin(context.samples.table["id"])]
    settings = Adaptation(size=context.run.pool, seed=context.settings.adaptation.seed)
    return context.encoded(draw(left, context.stack, context.loaded.tokenizer, settings))


class Surface:
    """The log-probabilities of all pairs on the pool and on the test rows, pack by pack."""

    def __init__(self, context: StudyContext):
        self._context = context
        self._fractions = context.settings.search.fractions
        self._rows = {"pool": pool(context), "test": context.test}
        self._grids = {split: self._grid(rows) for split, rows in self._rows.items()}
        self._precision: Precision | None = None

    @property
    def parts(self) -> list[str]:
        return [f"{split} {pack}" for split, grid in self._grids.items() for pack in range(len(grid.sizes))]

    def compute(self, part: str) -> dict[str, Any]:
        """For each row of a pack: its gold index and log-probabilities, [1 + pairs, options], unpruned model first."""
        split, pack = part.split(" ")
        grid = self._grids[split]
        pairs = every_pair(len(self._context.stack), self._fractions)
        wanted = [p for p in parts_of(pairs, len(grid.sizes), self._settled()) if p.pack == int(pack)]
        values = list(compute_here(grid)(wanted).values())
        rows = grid.units(int(pack))
        by_row = [[model for value in values for model in value["logprobs"][at]] for at in range(len(rows))]
        gold = self._rows[split].gold
        return {"split": split, "rows": rows, "gold": [gold[row] for row in rows], "logprobs": by_row}

    def _settled(self) -> Precision:
        """bfloat16 where it was asked for and agrees with float32 on a sample of the pool."""
        if self._precision is None:
            grid = self._grids["pool"]
            parts = parts_of(every_pair(len(self._context.stack), self._fractions), len(grid.sizes))
            width = self._context.scores.values.shape[1]
            wanted = self._context.settings.precision.search
            self._precision = settle(wanted, parts, compute_here(grid), width).precision
        return self._precision

    def _grid(self, rows: Rows) -> Grid:
        scores = self._context.scores
        return Grid(self._context.stack, rows.encoded, rows.gold, scores.ranked, scores.projection, logprobs=True)


@lru_cache(maxsize=1)
def surface(context: StudyContext) -> Surface:
    """The surface of a study, made at the first use."""
    return Surface(context)


def parts(context: StudyContext) -> list[str]:
    return surface(context).parts


def compute(context: StudyContext, part: str) -> list[dict[str, Any]]:
    """The surface of one pack."""
    return [surface(context).compute(part)]


def finish(values: Sequence[dict[str, Any]], run: StudyRun, search: Search) -> list[Record]:
    """Every criterion, with and without abstention, over all draws of ten labeled rows of the pool."""
    pool_rows, pool_gold = joined(values, "pool")
    test_rows, test_gold = joined(values, "test")
    correct = right(test_rows, test_gold)
    accuracy = correct.mean(1)
    n = len(test_gold)
    # Against the unpruned model; a pair is chosen by many draws, so each is tested once.
    tests = [mcnemar(pair, correct[0]) for pair in correct]
    chosen: dict[tuple[str, bool], list[int]] = {(name, abstain): [] for name in CRITERIA for abstain in (False, True)}
    for seed in range(run.draws):
        rows = np.random.default_rng(seed).choice(len(pool_gold), LABELED, replace=False)
        seen = Seen(pool_rows[:, rows], pool_gold[rows], pool_rows, len(search.fractions))
        for name, abstain in chosen:
            chosen[name, abstain].append(choose_index(seen, name, abstain=abstain))
    base = float(accuracy[0])
    best = int(accuracy[1:].argmax()) + 1
    records = [Record("unpruned", base, standard_error(base, n), n)]
    for (name, abstain), picks in chosen.items():
        gains = accuracy[picks] - base
        detected = np.array([tests[pick]["p"] < LEVEL for pick in picks])
        records.append(
            Record(
                f"{name}, abstaining" if abstain else name,
                float(accuracy[picks].mean()),
                n=n,
                group="abstaining" if abstain else "always",
                more={
                    "gain": round(float(gains.mean()), 4),
                    "harm": round(float(np.mean(detected & (gains < 0))), 3),
                    "help": round(float(np.mean(detected & (gains > 0))), 3),
                    "regret": round(float(accuracy[best] - accuracy[picks].mean()), 4),
                    "abstained": round(float(np.mean(np.array(picks) == 0)), 3),
                    "pairs": len(set(picks) - {0}),
                },
            )
        )
    records.append(Record("best pair on the test rows", float(accuracy[best]), standard_error(accuracy[best], n), n))
    return records


def joined(values: Sequence[dict[str, Any]], split: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Normalised log-probabilities [1 + pairs, rows, options] and gold [rows] of a split, rows in their order.

    Rows with fewer options than others are padded with -inf.
    """
    own = [value for value in values if value["split"] == split]
    rows: dict[int, tuple[int, list[list[float]]]] = {}
    for value in own:
        for row, gold, logprobs in zip(value["rows"], value["gold"], value["logprobs"], strict=True):
            rows[row] = gold, logprobs
    width = max(len(logprobs[0]) for _, logprobs in rows.values())
    padded = np.full((len(next(iter(rows.values()))[1]), len(rows), width), -np.inf)
    for position, index in enumerate(sorted(rows)):
        logprobs = np.array(rows[index][1])
        padded[:, position, : logprobs.shape[1]] = logprobs
    return normalised(padded), np.array([rows[index][0] for index in sorted(rows)], dtype=np.int64)


def arrays(values: Sequence[dict[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """The surface, to be kept: `pool` and `test`, float32 [1 + pairs, rows, options], and the gold of their rows."""
    named_arrays: dict[str, npt.NDArray[Any]] = {}
    for split in ("pool", "test"):
        logprobs, gold = joined(values, split)
        named_arrays |= {split: logprobs.astype(np.float32), f"{split}_gold": gold}
    return named_arrays
