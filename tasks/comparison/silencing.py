"""Systems that silence neurons: the paper's pruning, its random control, and a random control with a search."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from tasks.benchmarks.scoring import answers_without
from tasks.comparison.system import Answer, FitData, Fitted, System
from tasks.method.algorithm import search_rows
from tasks.method.neurons import random_neurons
from tasks.method.options import Search
from tasks.method.recipe import Recipe, make_recipe
from tasks.method.scores import as_scores
from tasks.models.products import Precision
from tasks.models.stack import DecoderStack, Projection


def pruned(recipe: Recipe, examples: int) -> System:
    """The pruned model of the cell (2507.09185); its recipe was chosen on `examples` rows."""
    return partial(_fitted, recipe.layer, recipe.neurons, recipe.projection, examples, {})


def random(recipe: Recipe, examples: int) -> System:
    """The control of 2507.09185: as many random neurons of the chosen layer, without its own search."""

    def fit(fit_data: FitData) -> Fitted:
        neurons = random_neurons(recipe.d_ff, len(recipe.neurons), fit_data.seed)
        return _fitted(recipe.layer, neurons, recipe.projection, examples, {}, fit_data)

    return fit


def random_searched(search: Search, projection: Projection = "gate_proj", precision: Precision = "float32") -> System:
    """A stronger control, ours: neurons in random order, with the same search over layers and fractions.

    The difference between pruning and this control is due to the scores.
    """

    def fit(fit_data: FitData) -> Fitted:
        stack, rows = fit_data.stack, fit_data.examples
        generator = np.random.default_rng(fit_data.seed)
        order = np.stack([generator.permutation(stack.width(projection)) for _ in range(len(stack))])
        scores = as_scores(order.astype(np.float32), projection, len(rows.gold))
        tokenizer, unlabeled = fit_data.loaded.tokenizer, fit_data.unlabeled
        grid, _ = search_rows(stack, tokenizer, rows, scores, search, precision, unlabeled)
        recipe = make_recipe(grid, scores)
        return _fitted(
            recipe.layer, recipe.neurons, projection, len(rows.gold), {"fraction": recipe.fraction}, fit_data
        )

    return fit


def _fitted(
    layer: int,
    neurons: Sequence[int] | np.ndarray,
    projection: Projection,
    examples: int,
    settings: dict[str, Any],
    fit_data: FitData,
) -> Fitted:
    applied = partial(_without, fit_data.stack, layer, np.array(neurons), projection)
    return Fitted(applied, examples, examples, {"layer": layer, "neurons": len(neurons)} | settings)


@contextmanager
def _without(stack: DecoderStack, layer: int, neurons: np.ndarray, projection: Projection) -> Iterator[Answer]:
    yield partial(answers_without, stack, layer=layer, sets=[neurons], projection=projection)
