"""Which (layer, fraction) pairs a search looks at. A strategy asks for grids of pairs and sees what they give.

The paper's search is exhaustive; for models of 100 billion parameters its authors name the two others, without detail.
What is here is one way to do either.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from tasks.pruning.grid import UNPRUNED, Pairs, every_pair
from tasks.pruning.masks import top_neurons
from tasks.pruning.recipe import choose

Evaluate = Callable[[Pairs], pd.DataFrame]  # pairs -> their grid, with the row of the unpruned model
Strategy = Callable[[np.ndarray, Sequence[float], Evaluate], pd.DataFrame]

STRIDE = 4  # coarse_to_fine: every so many layers
PROMINENT = 0.05  # layer_subset: the part of a layer's neurons whose scores stand for it


def exhaustive(scores: np.ndarray, fractions: Sequence[float], evaluate: Evaluate) -> pd.DataFrame:
    """Every layer x every fraction (2507.09185 Alg. 1)."""
    return evaluate(every_pair(len(scores), fractions))


def coarse_to_fine(scores: np.ndarray, fractions: Sequence[float], evaluate: Evaluate) -> pd.DataFrame:
    """Every fourth layer at the smallest, middle and largest fraction, then all fractions around the best of these."""
    layers = len(scores)
    few = sorted({fractions[0], fractions[len(fractions) // 2], fractions[-1]})
    coarse = dict.fromkeys(range(min(STRIDE // 2, layers - 1), layers, STRIDE), few)
    grid = evaluate(coarse)
    best = int(choose(grid)[0]["layer"])
    fine = {
        layer: [p for p in fractions if p not in coarse.get(layer, ())]
        for layer in range(max(0, best - STRIDE + 1), min(layers, best + STRIDE))
    }
    more = evaluate({layer: ps for layer, ps in fine.items() if ps})
    return _sorted(pd.concat([grid, more[more.layer != UNPRUNED]]))


def layer_subset(scores: np.ndarray, fractions: Sequence[float], evaluate: Evaluate) -> pd.DataFrame:
    """All fractions of a quarter of the layers: those whose most prominent neurons have the highest scores in sum."""
    number = max(1, int(PROMINENT * scores.shape[1]))
    prominence = np.array([layer[top_neurons(layer, number)].sum(dtype=np.float64) for layer in scores])
    chosen = top_neurons(prominence, max(1, len(scores) // 4))
    return evaluate(dict.fromkeys(sorted(int(layer) for layer in chosen), fractions))


STRATEGIES: Mapping[str, Strategy] = {
    "exhaustive": exhaustive,
    "coarse_to_fine": coarse_to_fine,
    "layer_subset": layer_subset,
}


def replayed(grid: pd.DataFrame) -> Evaluate:
    """Answers a strategy from a grid that has every pair: what it would have found, without computing anything."""

    def evaluate(pairs: Pairs) -> pd.DataFrame:
        wanted = {(layer, fraction) for layer, fractions in pairs.items() for fraction in fractions} | {(UNPRUNED, 0.0)}
        return grid[[pair in wanted for pair in zip(grid.layer, grid.fraction, strict=True)]]

    return evaluate


def _sorted(grid: pd.DataFrame) -> pd.DataFrame:
    return grid.sort_values(["layer", "fraction"], ignore_index=True)
