"""Applies a recipe to a model in memory: the rows of its neurons are set to zero in the weights, and restored."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tasks.method.recipe import Recipe
from tasks.models.mlp import mlp_of
from tasks.models.stack import DecoderStack, Projection
from tasks.models.stored import unit_of
from tasks.models.structure import decoder_layers
from tasks.runtime.errors import InputError


@dataclass(frozen=True)
class Neurons:
    """Neurons of one layer: a `Recipe` without its origin."""

    layer: int
    neurons: Sequence[int] | np.ndarray
    projection: Projection = "gate_proj"


@contextmanager
def silenced(model: Any, *recipes: Recipe | Neurons) -> Iterator[None]:
    """A context in which the neurons of these recipes are silent. Afterwards the weights are restored bit for bit.

    Several recipes zero the rows of all of them; their gains need not add up.

    Args:
        model: a causal language model of `transformers`, or a `DecoderStack` of one.

    Raises:
        InputError: a recipe is for a model of another shape.

    Example:
        >>> with silenced(model, recipe):
        ...     model.generate(**inputs)
    """
    with ExitStack() as undo:
        for recipe in recipes:
            undo.callback(silence(model, recipe))
        yield


def silence(model: Any, recipe: Recipe | Neurons) -> Callable[[], None]:
    """Sets the rows of the recipe's neurons, and their biases, to zero in the weights of a model in memory.

    In an MLP y = W_down (act(W_gate x) * W_up x) with act(0) = 0, a zeroed row of gate_proj (or up_proj) makes the
    neuron silent. Without a gate, gate_proj is the first linear layer (`tasks.models.mlp`).
    `tasks.models.sweep.logits_without` computes the same without changing the weights.

    Returns:
        A function that restores the weights.

    Raises:
        InputError: the recipe is for a model of another shape.
    """
    layers = model.layers if isinstance(model, DecoderStack) else decoder_layers(model)
    if recipe.layer >= len(layers) or (isinstance(recipe, Recipe) and recipe.layers != len(layers)):
        raise InputError("recipe", f"is for another model: layer {recipe.layer} of one with {len(layers)} layers")
    layer = layers[recipe.layer]
    with unit_of(layer).used():
        mlp = mlp_of(layer, type(model).__name__)
    width = mlp.width(recipe.projection)
    if isinstance(recipe, Recipe) and recipe.d_ff != width:
        raise InputError("recipe", f"is for another model: {recipe.projection} has {width} rows, not {recipe.d_ff}")
    rows = mlp.row_tensors(recipe.projection, np.asarray(recipe.neurons, dtype=np.int64))
    with torch.no_grad():
        before = [tensor[index].clone() for tensor, index in rows]
        for tensor, index in rows:
            tensor[index] = 0

    def undo() -> None:
        with torch.no_grad():
            for (tensor, index), values in zip(rows, before, strict=True):
                tensor[index] = values

    return undo
