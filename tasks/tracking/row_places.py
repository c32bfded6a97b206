"""Where the rows of a recipe are: in the safetensors files of a model directory, and in the model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.pytorch_utils import Conv1D

from tasks.method.recipe import Recipe
from tasks.models.checks import as_input_error
from tasks.models.experts import Experts
from tasks.models.loading import skeleton
from tasks.models.mlp import mlp_of
from tasks.models.structure import layer_list
from tasks.models.weights import Tensor, tensors, weight_files
from tasks.runtime.errors import InputError

# The gate and the up projection of one expert in files: the second name is Mixtral's.
NAMES = ("(?:gate_proj|w1)", "(?:up_proj|w3)")


@dataclass(frozen=True)
class RowPlace:
    """A tensor with the rows of a recipe's projection, or with their biases.

    Attributes:
        file: a safetensors file.
        tensor: its name in the file.
        parameter: what it is in the model, with the list of the decoder layers: `layers.3.mlp.gate_proj.weight`.
        dim: the dimension that counts the rows: 1 where the matrix is stored transposed.
        start: the number of the first row of the projection; the tensor may hold those of another before it. In a
            tensor [experts, rows, in] the rows of all experts are counted.
        neurons: the neurons that belong to these rows.
        each: how many neurons an expert has, if the model has experts.
    """

    file: Path
    tensor: str
    parameter: str
    dim: int
    start: int
    neurons: range
    each: int | None = None

    def rows(self, neurons: Sequence[int]) -> list[int]:
        """The numbers of the rows of these neurons, as far as this tensor has them."""
        return [self.start + neuron - self.neurons.start for neuron in neurons if neuron in self.neurons]


def row_places(model_dir: Path, recipe: Recipe) -> list[RowPlace]:
    """The tensors of a model whose rows the recipe zeroes: weights and, if the model has any, biases.

    For a mixture of experts, the rows of all experts of the layer. Files hold the experts one by one or together.

    Raises:
        InputError: the model has other layers or rows than the recipe says, or no tensor or more than one matches.
    """
    with as_input_error("model", f"{model_dir} cannot be loaded"):
        model = skeleton(model_dir)
        of_layers, layers = layer_list(model.get_decoder())
        if recipe.layer >= len(layers):
            raise InputError("recipe", f"is for another model: layer {recipe.layer} of one with {len(layers)} layers")
        layer = layers[recipe.layer]
        mlp = mlp_of(layer, type(model).__name__)
    there = [(path, tensor) for path in weight_files(model_dir) for tensor in tensors(path)]
    if isinstance(mlp, Experts):
        return _of_experts(mlp, layer, f"{of_layers}.{recipe.layer}", recipe, there)
    _, part, parts = mlp.place(recipe.projection)
    linear = mlp.linear(recipe.projection)
    module = next(name for name, child in layer.named_modules() if child is linear)
    places = []
    for kind in ("weight", "bias") if linear.bias is not None else ("weight",):
        parameter = f"{of_layers}.{recipe.layer}.{module}.{kind}"
        dim = int(kind == "weight" and isinstance(linear, Conv1D))
        path, tensor = _only(parameter, there)
        if tensor.shape[dim] != parts * recipe.d_ff:
            raise InputError(
                "model",
                f"{tensor.name} has {tensor.shape[dim]} rows, but the recipe is for {parts} x {recipe.d_ff}",
            )
        places.append(RowPlace(path, tensor.name, parameter, dim, part * recipe.d_ff, range(recipe.d_ff)))
    return places


def _of_experts(
    mlp: Experts, layer: Any, prefix: str, recipe: Recipe, there: list[tuple[Path, Tensor]]
) -> list[RowPlace]:
    """The rows of each expert: in one tensor gate_up_proj, or in a tensor of each, as in what transformers saves."""
    if recipe.d_ff != mlp.d_ff:
        raise InputError("model", f"its experts have {mlp.d_ff} rows, but the recipe is for {recipe.d_ff}")
    each, part = mlp.each, mlp.part(recipe.projection)
    module = next(name for name, child in layer.named_modules() if child is mlp.inside)
    parameter = f"{prefix}.{module}.gate_up_proj"
    neurons = [range(expert * each, (expert + 1) * each) for expert in range(mlp.number)]
    if any(re.fullmatch(rf"(?:.+\.)?{re.escape(parameter)}", tensor.name) for _, tensor in there):
        path, tensor = _only(parameter, there)
        starts = [(2 * expert + part) * each for expert in range(mlp.number)]
        return [
            RowPlace(path, tensor.name, parameter, 0, start, part_of, each)
            for start, part_of in zip(starts, neurons, strict=True)
        ]
    places = []
    for expert, part_of in enumerate(neurons):
        path, tensor = _only_named(rf"{re.escape(prefix)}\..+\.experts\.{expert}\.{NAMES[part]}\.weight", there)
        if tensor.shape != [each, mlp.d_model]:
            raise InputError("model", f"{tensor.name} has the shape {tensor.shape}, not {[each, mlp.d_model]}")
        places.append(RowPlace(path, tensor.name, parameter, 0, 0, part_of, each))
    return places


def _only(parameter: str, there: list[tuple[Path, Tensor]]) -> tuple[Path, Tensor]:
    """The tensor of a parameter of the decoder; the start of its name, before the list of layers, differs by file."""
    return _only_named(re.escape(parameter), there)


def _only_named(parameter: str, there: list[tuple[Path, Tensor]]) -> tuple[Path, Tensor]:
    wanted = re.compile(rf"(?:.+\.)?{parameter}")
    matches = [(path, tensor) for path, tensor in there if wanted.fullmatch(tensor.name)]
    if len(matches) != 1:
        name = parameter.replace("\\", "")
        raise InputError("model", f"{len(matches) or 'no'} tensors *{name} in its safetensors files; one is needed")
    return matches[0]
