"""Strategies: which (layer, fraction) pairs a search evaluates. A strategy asks for grids and sees the results.

The paper's search is exhaustive; for models of 100 billion parameters its authors name coarse_to_fine, layer_subset and
the layers of a smaller model (from_cell), without detail. This module has one version of each. `dropping` is ours.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from tasks.method.neurons import top_neurons
from tasks.method.options import Search
from tasks.method.pairs import COLUMNS, UNPRUNED, Pairs, every_pair
from tasks.method.recipe import ACCURACY, choose
from tasks.runtime.errors import InputError


class Evaluate(Protocol):
    """Grids of pairs, each with the row of the unpruned model."""

    @property
    def sizes(self) -> Sequence[int]:
        """Rows of each pack of the adaptation set."""

    def __call__(self, pairs: Pairs, pack: int | None = None) -> pd.DataFrame:
        """The grid on the rows of one pack; on all rows if None."""


class Strategy(Protocol):
    """Decides which pairs to look at."""

    def __call__(
        self, scores: np.ndarray, fractions: Sequence[float], evaluate: Evaluate, keys: Sequence[str] = ACCURACY
    ) -> pd.DataFrame:
        """The grid of the pairs that it looked at; `keys` are those that it chooses by (`choose`)."""


STRIDE = 4  # coarse_to_fine: every so many layers
PROMINENT = 0.05  # layer_subset: the part of a layer's neurons whose scores stand for it


def exhaustive(
    scores: np.ndarray, fractions: Sequence[float], evaluate: Evaluate, keys: Sequence[str] = ACCURACY
) -> pd.DataFrame:
    """Every layer x every fraction (2507.09185 Alg. 1)."""
    return evaluate(every_pair(len(scores), fractions))


def coarse_to_fine(
    scores: np.ndarray, fractions: Sequence[float], evaluate: Evaluate, keys: Sequence[str] = ACCURACY
) -> pd.DataFrame:
    """Every fourth layer at the smallest, middle and largest fraction, then all fractions around the best of these."""
    layers = len(scores)
    few = sorted({fractions[0], fractions[len(fractions) // 2], fractions[-1]})
    coarse = dict.fromkeys(range(min(STRIDE // 2, layers - 1), layers, STRIDE), few)
    grid = evaluate(coarse)
    best = int(choose(grid, keys)[0]["layer"])
    fine = {
        layer: [p for p in fractions if p not in coarse.get(layer, ())]
        for layer in range(max(0, best - STRIDE + 1), min(layers, best + STRIDE))
    }
    more = evaluate({layer: ps for layer, ps in fine.items() if ps})
    return _sorted(pd.concat([grid, more[more.layer != UNPRUNED]]))


def layer_subset(
    scores: np.ndarray, fractions: Sequence[float], evaluate: Evaluate, keys: Sequence[str] = ACCURACY
) -> pd.DataFrame:
    """All fractions of a quarter of the layers: those whose most prominent neurons have the highest scores in sum."""
    number = max(1, int(PROMINENT * scores.shape[1]))
    prominence = np.array([layer[top_neurons(layer, number)].sum(dtype=np.float64) for layer in scores])
    chosen = top_neurons(prominence, max(1, len(scores) // 4))
    return evaluate(dict.fromkeys(sorted(int(layer) for layer in chosen), fractions))


def dropping(
    scores: np.ndarray, fractions: Sequence[float], evaluate: Evaluate, keys: Sequence[str] = ACCURACY
) -> pd.DataFrame:
    """Every pair, pack by pack. A pair that can no longer reach the best one is dropped and is not in the grid.

    The choice is that of the exhaustive search: a pair is dropped when it would fall behind even if all
    remaining rows were right. It saves time if the adaptation set fills several packs (ten short prompts fill one).
    """
    pairs, by = every_pair(len(scores), fractions), keys[0]
    columns = list(dict.fromkeys(["accuracy", by, "margin"]))
    sums = grid = pd.DataFrame()
    for number, size in enumerate(evaluate.sizes):
        grid = evaluate(pairs, number).set_index(["layer", "fraction"])
        sums = grid[columns] * size + (sums.loc[grid.index] if number else 0)
        right = sums[by].round().drop(index=UNPRUNED)
        alive = right[right + sum(evaluate.sizes[number + 1 :]) >= right.max()].index
        pairs = {int(layer): sorted(p for at, p in alive if at == layer) for layer in alive.unique("layer")}
    grid[columns] = sums / sum(evaluate.sizes)
    return grid.loc[[(UNPRUNED, 0.0), *alive]].reset_index()[[*COLUMNS, *sorted({by} - set(COLUMNS))]]


STRATEGIES: Mapping[str, Strategy] = {
    "exhaustive": exhaustive,
    "coarse_to_fine": coarse_to_fine,
    "layer_subset": layer_subset,
    "dropping": dropping,
}


def strategy_of(search: Search) -> Strategy:
    """The strategy that the settings name.

    Raises:
        InputError: from_cell without depths.
    """
    if search.strategy != "from_cell":
        return STRATEGIES[search.strategy]
    if search.depths is None:
        raise InputError("search.depths", f"is missing: from_cell needs those of the grid of {search.cell}")
    return at_depths(search.depths)


def at_depths(depths: Sequence[float]) -> Strategy:
    """All fractions of a quarter of the layers: those at these relative depths, or next to them.

    This is one reading of a suggestion of the paper's authors for models of 100 billion parameters: search the layers
    that were best in a smaller model. The layer nearest to each depth comes first, then those one layer away. Of
    equally near layers, the one of the better depth comes first.

    Args:
        depths: from 0 (the first layer) to 1 (the last one), best first, as `best_depths` returns them.
    """

    def from_cell(
        scores: np.ndarray, fractions: Sequence[float], evaluate: Evaluate, keys: Sequence[str] = ACCURACY
    ) -> pd.DataFrame:
        layers = len(scores)
        nearest = [int(depth * (layers - 1) + 0.5) for depth in depths]

        def rank(layer: int) -> tuple[int, int, int]:
            return min((abs(layer - at), place, layer) for place, at in enumerate(nearest))

        chosen = sorted(range(layers), key=rank)[: max(1, layers // 4)]
        return evaluate(dict.fromkeys(sorted(chosen), fractions))

    return from_cell


def best_depths(grid: pd.DataFrame) -> list[float]:
    """The relative depths of the quarter of the layers with the highest mean accuracy over all fractions, best first.

    Ties are broken by the higher mean margin, then by the lower layer. Rounded to four decimals.

    Args:
        grid: of an exhaustive search.

    Raises:
        InputError: the grid does not have every fraction of every layer.
    """
    pairs = grid[grid.layer != UNPRUNED]
    layers = int(pairs.layer.max()) + 1
    if len(pairs) != layers * pairs.fraction.nunique():
        raise InputError("search.cell", "its grid does not have every fraction of every layer: search it exhaustively")
    means = pairs.groupby("layer")[["accuracy", "margin"]].mean().reset_index()
    ranked = means.sort_values(["accuracy", "margin", "layer"], ascending=[False, False, True]).layer
    return [round(int(layer) / max(1, layers - 1), 4) for layer in ranked[: max(1, layers // 4)]]


class Replayed:
    """Answers a strategy from a grid that has every pair, to see what it would choose without computing anything."""

    def __init__(self, grid: pd.DataFrame):
        self._grid = grid

    @property
    def sizes(self) -> Sequence[int]:
        """One pack: the grid does not have results for parts of the rows."""
        return [1]

    def __call__(self, pairs: Pairs, pack: int | None = None) -> pd.DataFrame:
        grid = self._grid
        wanted = {(layer, fraction) for layer, fractions in pairs.items() for fraction in fractions} | {(UNPRUNED, 0.0)}
        return grid[[pair in wanted for pair in zip(grid.layer, grid.fraction, strict=True)]]


def _sorted(grid: pd.DataFrame) -> pd.DataFrame:
    return grid.sort_values(["layer", "fraction"], ignore_index=True)
