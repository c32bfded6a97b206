"""Neurons silenced by a rule: the paper's pruning, its random control, and a control that may search as well."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from tasks.benchmarks.scoring import answers_without
from tasks.comparison.system import Answer, Fitted, Ground, System
from tasks.models.products import Precision
from tasks.models.stack import DecoderStack, Projection
from tasks.pruning.grid import Grid
from tasks.pruning.masks import count, random_neurons, top_neurons
from tasks.pruning.recipe import Recipe, choose
from tasks.pruning.searching import search_here


def pruned(recipe: Recipe, examples: int) -> System:
    """The pruned model of the cell, chosen on `examples` rows (2507.09185)."""
    return partial(_silent, recipe.layer, np.array(recipe.neurons), recipe.projection, examples, {})


def random(recipe: Recipe, examples: int) -> System:
    """The control of 2507.09185: as many random neurons of the layer that was chosen; no search of its own."""

    def fit(ground: Ground) -> Fitted:
        neurons = random_neurons(recipe.d_ff, len(recipe.neurons), ground.seed)
        return _silent(recipe.layer, neurons, recipe.projection, examples, {}, ground)

    return fit


def random_searched(
    fractions: Sequence[float],
    projection: Projection = "gate_proj",
    strategy: str = "exhaustive",
    precision: Precision = "float32",
) -> System:
    """A stronger control, ours: neurons in random order, and the same search over layers and fractions on the examples.

    What pruning by scores gains beyond it is due to the scores.

    Args:
        strategy: that of the cell, and so is the precision: `tasks.pruning.searching.search_here`.
    """

    def fit(ground: Ground) -> Fitted:
        stack, rows = ground.stack, ground.examples
        width = stack.width(projection)
        generator = np.random.default_rng(ground.seed)
        scores = np.stack([generator.permutation(width) for _ in range(len(stack))]).astype(np.float32)
        grid = Grid(stack, rows.encoded, rows.gold, scores, projection)
        pair, _ = choose(search_here(grid, scores, fractions, strategy, precision))
        layer, fraction = int(pair["layer"]), float(pair["fraction"])
        neurons = top_neurons(scores[layer], count(fraction, width))
        return _silent(layer, neurons, projection, len(rows.gold), {"fraction": fraction}, ground)

    return fit


def _silent(
    layer: int, neurons: np.ndarray, projection: Projection, examples: int, settings: dict[str, Any], ground: Ground
) -> Fitted:
    told = {"layer": layer, "neurons": len(neurons)} | settings
    return Fitted(partial(_without, ground.stack, layer, neurons, projection), examples, examples, told)


@contextmanager
def _without(stack: DecoderStack, layer: int, neurons: np.ndarray, projection: Projection) -> Iterator[Answer]:
    yield partial(answers_without, stack, layer=layer, sets=[neurons], projection=projection)
