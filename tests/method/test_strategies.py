"""Strategies over a grid whose every pair is known."""

import numpy as np
import pandas as pd
import pytest

from tasks.method.grid import COLUMNS, UNPRUNED
from tasks.method.recipe import choose
from tasks.method.strategies import STRATEGIES, Replayed

LAYERS, FRACTIONS = 30, [0.05, 0.1, 0.2, 0.3, 0.4]


def surface(accuracy):
    records = [(UNPRUNED, 0.0, 0, 0.5, 0.0)]
    records += [(layer, p, int(100 * p), accuracy(layer, p), 0.0) for layer in range(LAYERS) for p in FRACTIONS]
    return pd.DataFrame(records, columns=list(COLUMNS)).astype(COLUMNS)


def found(name, grid, scores=None):
    scores = np.zeros((LAYERS, 100), dtype=np.float32) if scores is None else scores
    return STRATEGIES[name](scores, FRACTIONS, Replayed(grid))


def test_exhaustive_looks_at_every_pair():
    grid = surface(lambda layer, p: layer * p)
    pd.testing.assert_frame_equal(found("exhaustive", grid), grid)


@pytest.mark.parametrize("peak", [0, 3, 13, 22, 29])
def test_coarse_to_fine_finds_the_peak_of_a_smooth_surface_with_fewer_pairs(peak):
    grid = surface(lambda layer, p: 1 - abs(layer - peak) / 50 - abs(p - 0.1))
    looked_at = found("coarse_to_fine", grid)
    chosen, _ = choose(looked_at)
    assert (chosen["layer"], chosen["fraction"]) == (peak, 0.1)
    assert len(looked_at) < len(grid) / 2
    assert not looked_at.duplicated(["layer", "fraction"]).any()
    assert looked_at.iloc[0].layer == UNPRUNED
    assert (looked_at.layer == UNPRUNED).sum() == 1


def test_coarse_to_fine_works_on_few_layers():
    grid = surface(lambda layer, p: layer * p)
    few = grid[grid.layer < 2]
    looked_at = STRATEGIES["coarse_to_fine"](np.zeros((2, 100), dtype=np.float32), FRACTIONS, Replayed(few))
    assert choose(looked_at)[0]["layer"] == 1


def test_layer_subset_looks_at_the_layers_whose_best_neurons_score_highest():
    scores = np.zeros((LAYERS, 100), dtype=np.float32)
    scores[[4, 9, 11, 20, 21, 22, 29], 7] = 5.0
    scores[12] = 0.9  # a higher sum over all neurons, but no prominent one
    looked_at = found("layer_subset", surface(lambda layer, p: 0.5), scores)
    assert sorted(set(looked_at.layer)) == [UNPRUNED, 4, 9, 11, 20, 21, 22, 29]
    assert len(looked_at) == 1 + 7 * len(FRACTIONS)


class Rows:
    """Grids made of single rows: right or wrong for each pair, in packs of given sizes."""

    def __init__(self, sizes, seed):
        self.sizes, self.asked = sizes, 0
        rng = np.random.default_rng(seed)
        quality = rng.uniform(0.2, 0.9, size=LAYERS * len(FRACTIONS))
        self.right = rng.uniform(size=(sum(sizes), len(quality))) < quality
        self.margin = rng.normal(size=self.right.shape)

    def __call__(self, pairs, pack=None):
        starts = np.cumsum([0, *self.sizes])
        rows = slice(None) if pack is None else slice(starts[pack], starts[pack + 1])
        records = [(UNPRUNED, 0.0, 0, 0.5, 0.0)]
        for layer, fractions in pairs.items():
            for p in fractions:
                at = layer * len(FRACTIONS) + FRACTIONS.index(p)
                self.asked += len(self.right[rows])
                records.append((layer, p, 1, self.right[rows, at].mean(), self.margin[rows, at].mean()))
        return pd.DataFrame(records, columns=list(COLUMNS)).astype(COLUMNS)


@pytest.mark.parametrize("sizes", [[10], [10, 10, 10, 10, 10], [3, 20, 7]])
@pytest.mark.parametrize("seed", range(5))
def test_dropping_chooses_what_exhaustive_chooses_and_never_asks_for_more(sizes, seed):
    scores = np.zeros((LAYERS, 100), dtype=np.float32)
    whole, part = Rows(sizes, seed), Rows(sizes, seed)
    every = STRATEGIES["exhaustive"](scores, FRACTIONS, whole)
    left = STRATEGIES["dropping"](scores, FRACTIONS, part)
    assert list(left.columns) == list(every.columns)
    first, second = choose(every)[0], choose(left)[0]
    assert first == pytest.approx(second)
    assert part.asked < whole.asked if len(sizes) > 1 else part.asked == whole.asked
