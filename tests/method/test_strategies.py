"""Strategies over a grid whose every pair is known."""

import numpy as np
import pandas as pd
import pytest

from tasks.method.options import Search
from tasks.method.pairs import COLUMNS, UNPRUNED
from tasks.method.recipe import choose
from tasks.method.strategies import STRATEGIES, Replayed, at_depths, best_depths, strategy_of
from tasks.runtime.errors import InputError

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


def test_best_depths_are_those_of_the_layers_with_the_highest_means():
    """Nine layers, of which two are chosen: the one with fewer lucky fractions first; ties by margin, then by layer."""
    grid = surface(lambda layer, p: {3: 0.6, 6: 0.7}.get(layer, 0.5) + (0.15 if (layer, p) == (1, 0.4) else 0))
    grid = grid[grid.layer < 9]
    assert best_depths(grid) == [0.75, 0.375]
    flat = surface(lambda layer, p: 0.5)
    flat = flat[flat.layer < 8]
    assert best_depths(flat) == [0.0, round(1 / 7, 4)]
    flat.loc[flat.layer == 5, "margin"] = 0.1
    assert best_depths(flat) == [round(5 / 7, 4), 0.0]
    assert best_depths(surface(lambda layer, p: 0.5)[lambda grid: grid.layer < 1]) == [0.0]


def test_depths_of_an_incomplete_grid_are_refused():
    grid = surface(lambda layer, p: 0.5)
    with pytest.raises(InputError, match="its grid does not have every fraction of every layer"):
        best_depths(grid[(grid.layer != 4) | (grid.fraction > 0.1)])


@pytest.mark.parametrize(
    ("layers", "depths", "expected"),
    [
        (30, [0.5, 0.0], [0, 1, 13, 14, 15, 16, 17]),  # 14.5 counts as 15
        (8, [1.0, 0.0, 0.5], [0, 7]),  # two of eight: the better depths
        (8, [0.5, 0.0, 1.0], [0, 4]),
        (3, [0.4], [1]),
        (1, [0.4], [0]),
        (12, [0.2727, 0.3636, 0.4545], [3, 4, 5]),  # the same depths in a model of as many layers: its layers
    ],
)
def test_depths_become_the_nearest_layers_of_another_model(layers, depths, expected):
    grid = surface(lambda layer, p: 0.5)
    grid = grid[grid.layer < layers]
    strategy = strategy_of(Search(strategy="from_cell", cell="small-sst2", depths=depths))
    looked_at = strategy(np.zeros((layers, 100), dtype=np.float32), FRACTIONS, Replayed(grid))
    found = sorted(set(looked_at.layer) - {UNPRUNED})
    assert len(looked_at) == 1 + len(found) * len(FRACTIONS)
    assert found == expected


def test_from_cell_finds_a_peak_at_the_depth_of_that_of_the_smaller_model():
    small = surface(lambda layer, p: 1 - abs(layer / 11 - 0.55) - abs(p - 0.1))
    large = surface(lambda layer, p: 1 - abs(layer / 29 - 0.55) - abs(p - 0.1))
    depths = best_depths(small[small.layer < 12])
    looked_at = at_depths(depths)(np.zeros((30, 100), dtype=np.float32), FRACTIONS, Replayed(large))
    assert choose(looked_at)[0] == choose(large)[0]
    assert len(looked_at) < len(large) / 3


def test_from_cell_needs_a_cell_and_depths():
    with pytest.raises(ValueError, match="cell: from_cell needs the name of a finished cell"):
        Search(strategy="from_cell")
    with pytest.raises(InputError, match=r"search.depths: is missing: from_cell needs those of the grid of small-sst2"):
        strategy_of(Search(strategy="from_cell", cell="small-sst2"))


class Rows:
    """Grids of single rows: right or wrong for each pair, in packs of given sizes."""

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
