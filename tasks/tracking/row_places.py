"""Where the rows of a recipe are: in the safetensors files of a model directory, and in the model."""

import re
from dataclasses import dataclass
from pathlib import Path

from transformers.pytorch_utils import Conv1D

from tasks.method.recipe import Recipe
from tasks.models.checks import one_line
from tasks.models.loading import skeleton
from tasks.models.mlp import mlp_of
from tasks.models.structure import layer_list
from tasks.models.weights import Tensor, tensors, weight_files
from tasks.runtime.errors import InputError


@dataclass(frozen=True)
class RowPlace:
    """A tensor with the rows of a recipe's projection, or with their biases.

    Attributes:
        file: a safetensors file.
        tensor: its name in the file.
        parameter: what it is in the model, with the list of the decoder layers: `layers.3.mlp.gate_proj.weight`.
        dim: the dimension that counts the rows: 1 where the matrix is stored transposed.
        start: the number of the first row of the projection; the tensor may hold those of another before it.
    """

    file: Path
    tensor: str
    parameter: str
    dim: int
    start: int


def row_places(model_dir: Path, recipe: Recipe) -> list[RowPlace]:
    """The tensors of a model whose rows the recipe zeroes: weights and, if the model has any, biases.

    Raises:
        InputError: the model has other layers or rows than the recipe says, or no tensor or several could be it.
    """
    with one_line("model", f"{model_dir} cannot be loaded"):
        model = skeleton(model_dir)
        of_layers, layers = layer_list(model.get_decoder())
        if recipe.layer >= len(layers):
            raise InputError("recipe", f"is for another model: layer {recipe.layer} of one with {len(layers)} layers")
        layer = layers[recipe.layer]
        mlp = mlp_of(layer, type(model).__name__)
    _, part, parts = mlp.place(recipe.projection)
    linear = mlp.linear(recipe.projection)
    module = next(name for name, found in layer.named_modules() if found is linear)
    there = [(path, tensor) for path in weight_files(model_dir) for tensor in tensors(path)]
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
        places.append(RowPlace(path, tensor.name, parameter, dim, part * recipe.d_ff))
    return places


def _only(parameter: str, there: list[tuple[Path, Tensor]]) -> tuple[Path, Tensor]:
    """The tensor that is a parameter of the decoder: what stands before the list of layers differs between files."""
    wanted = re.compile(rf"(?:.+\.)?{re.escape(parameter)}")
    found = [(path, tensor) for path, tensor in there if wanted.fullmatch(tensor.name)]
    if len(found) != 1:
        raise InputError("model", f"{len(found) or 'no'} tensors *{parameter} in its safetensors files; one is needed")
    return found[0]
