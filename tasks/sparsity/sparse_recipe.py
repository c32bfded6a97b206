"""A sparse model as data: a JSON recipe and a safetensors file of masks.

Magnitude, Wanda and RIA only remove weights, so the masks (one bit per weight) and the base model give the sparse
model. SparseGPT also changes the remaining weights. Repeating it on other hardware or with another number of threads
would give different last digits and then different masks, so the remaining weights are stored too.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.models.hashing import sha256_directory
from tasks.models.loading import Loaded
from tasks.models.structure import weight_of
from tasks.runtime.errors import InputError
from tasks.runtime.fields import Count, Fraction, Seed, Sha256, Strict
from tasks.runtime.files import replacing, sha256_file, write_json
from tasks.sparsity.bitmask import unpack_mask
from tasks.sparsity.calibration import Calibration
from tasks.sparsity.layers import Layers
from tasks.sparsity.metrics import NOfM
from tasks.sparsity.weight_pruning import Method, Report

RECIPE, MASKS = "sparse.json", "masks.safetensors"
SIZE_LIMIT = 16 << 20  # bytes of the recipe; the largest models need less than 1 MiB


class CalibrationSet(Strict):
    """The calibration sequences. `length` is in tokens; `sha256` is the hash of the token ids."""

    name: str
    sha256: Sha256
    sequences: Count
    length: Count
    seed: Seed


class Matrix(Strict):
    """A pruned matrix: its shape and the number of removed weights."""

    rows: Count
    columns: Count
    removed: int = Field(ge=0)
    sparsity: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _adds_up(self) -> "Matrix":
        if self.sparsity != self.removed / (self.rows * self.columns):
            raise ValueError(f"{self.removed} of {self.rows} x {self.columns} weights are not {self.sparsity}")
        return self


class SparseRecipe(Strict):
    """The pruning of a model.

    `matrices` are by the name of the linear layer. `masks_sha256` is the hash of the file of masks. With `permuted`,
    that file also has an `order` of the inputs of each matrix: mask[:, order] is N:M.
    """

    format: Literal[1] = 1
    base_sha256: Sha256
    method: Method
    sparsity: Fraction | None = None
    n_of_m: tuple[int, int] | None = None
    permuted: bool = False
    calibration: CalibrationSet | None = None
    matrices: dict[str, Matrix]
    masks_sha256: Sha256

    @model_validator(mode="after")
    def _one_target(self) -> "SparseRecipe":
        if (self.sparsity is None) == (self.n_of_m is None):
            raise ValueError("either sparsity or n_of_m is needed")
        if (self.calibration is None) != (self.method == "magnitude"):
            raise ValueError("all methods except magnitude need a calibration set, and magnitude has none")
        if self.permuted and not (self.method == "ria" and self.n_of_m):
            raise ValueError("permuted: only ria with n_of_m has a channel permutation")
        return self


def write_recipe(
    directory: Path, loaded: Loaded, report: Report, *, base_sha256: str, calibration: Calibration | None
) -> SparseRecipe:
    """Writes sparse.json and masks.safetensors for a model that `prune_weights` has just pruned.

    Args:
        base_sha256: the hash of the unpruned model (`tasks.models.hashing.sha256_directory`).
        calibration: the calibration set; ignored for magnitude.
    """
    tensors: dict[str, Tensor] = {}
    linears = Layers(loaded.model).all_linears()
    for name, matrix in report.matrices.items():
        tensors[f"{name}.mask"] = matrix.mask
        if matrix.order is not None:
            tensors[f"{name}.order"] = matrix.order
        if report.method == "sparsegpt":
            weight = weight_of(linears[name]).detach().cpu()
            tensors[f"{name}.kept"] = weight[~unpack_mask(matrix.mask, matrix.shape)]
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / MASKS) as temporary:
        save_file(tensors, temporary)
    recipe = SparseRecipe(
        base_sha256=base_sha256,
        method=report.method,
        sparsity=None if isinstance(report.target, NOfM) else report.target,
        n_of_m=report.target if isinstance(report.target, NOfM) else None,
        permuted=report.permuted,
        calibration=None if report.method == "magnitude" or calibration is None else _calibration_set(calibration),
        matrices={
            name: Matrix(rows=m.shape[0], columns=m.shape[1], removed=m.removed, sparsity=m.sparsity)
            for name, m in report.matrices.items()
        },
        masks_sha256=sha256_file(directory / MASKS),
    )
    write_json(directory / RECIPE, recipe.model_dump(mode="json"))
    return recipe


def read_sparse_recipe(directory: Path) -> SparseRecipe:
    """The recipe in a directory.

    Raises:
        InputError: the recipe does not exist or is invalid, or the masks do not match its hash.
    """
    path = directory / RECIPE
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise InputError(str(path), f"has {path.stat().st_size} bytes; the limit is {SIZE_LIMIT}")
        recipe = SparseRecipe.model_validate_json(path.read_bytes(), strict=True)
        actual = sha256_file(directory / MASKS)
    except OSError as error:
        raise InputError(str(error.filename or path), error.strerror or "cannot be read") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}{': ' + field if field else ''}", first["msg"].removeprefix("Value error, ")) from None
    if actual != recipe.masks_sha256:
        raise InputError(str(directory / MASKS), f"has SHA-256 {actual}, but {RECIPE} says {recipe.masks_sha256}")
    return recipe


@torch.no_grad()
def apply_recipe(loaded: Loaded, model_dir: Path, directory: Path) -> SparseRecipe:
    """Prunes a model in place by the recipe in `directory`. The weights equal those of the pruned model bit for bit.

    Args:
        loaded: the unpruned model, from `tasks.models.loading.load`.
        model_dir: the directory of the model.

    Raises:
        InputError: as for `read_sparse_recipe`, or the recipe is for another model. The model is then unchanged.
    """
    recipe = read_sparse_recipe(directory)
    actual = sha256_directory(model_dir)
    if actual != recipe.base_sha256:
        raise InputError("model", f"{model_dir} has hash {actual}, but the recipe is for {recipe.base_sha256}")
    linears = Layers(loaded.model).all_linears()
    shapes = {name: tuple(weight_of(linear).shape) for name, linear in linears.items()}
    if shapes != {name: (matrix.rows, matrix.columns) for name, matrix in recipe.matrices.items()}:
        raise InputError("model", f"{model_dir} does not have the linear layers of the recipe")
    try:
        with safe_open(directory / MASKS, framework="pt") as file:
            _check_contents(file, recipe, directory / MASKS)
            for name, linear in linears.items():
                _apply(file, name, linear, kept=recipe.method == "sparsegpt")
    except SafetensorError as error:
        raise InputError(str(directory / MASKS), f"is not a safetensors file: {error}") from None
    return recipe


def _check_contents(file: Any, recipe: SparseRecipe, path: Path) -> None:
    expected: dict[str, list[int]] = {}
    for name, matrix in recipe.matrices.items():
        size = matrix.rows * matrix.columns
        expected[f"{name}.mask"] = [(size + 7) // 8]
        if recipe.method == "sparsegpt":
            expected[f"{name}.kept"] = [size - matrix.removed]
        if recipe.permuted:
            expected[f"{name}.order"] = [matrix.columns]
    if {key: file.get_slice(key).get_shape() for key in file.keys()} != expected:  # noqa: SIM118 (not a mapping)
        raise InputError(str(path), "does not hold the masks of the recipe's matrices")


def _apply(file: Any, name: str, linear: nn.Module, *, kept: bool) -> None:
    weight = weight_of(linear)
    rows, columns = weight.shape
    mask = unpack_mask(file.get_tensor(f"{name}.mask"), (rows, columns)).to(weight.device)
    if kept:
        weight.masked_scatter_(~mask, file.get_tensor(f"{name}.kept").to(weight))
    weight.masked_fill_(mask, 0)


def _calibration_set(calibration: Calibration) -> CalibrationSet:
    return CalibrationSet(
        name=calibration.name,
        sha256=calibration.sha256,
        sequences=len(calibration.sequences),
        length=calibration.length,
        seed=calibration.seed,
    )
