"""The two models that `dsm evaluate` compares: a recipe, sparse model or directory of weights, and its base model."""

from dataclasses import dataclass
from pathlib import Path

from tasks.method.recipe import Recipe, read_recipe
from tasks.models.hashing import sha256_directory
from tasks.pipeline.settings import Settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import existing_path
from tasks.sparsity.sparse_recipe import RECIPE, read_sparse_recipe

PRUNED = "pruned.json"  # the recipe's file name in cells and exports


@dataclass(frozen=True)
class Sides:
    """A changed model and its base.

    Attributes:
        name: of the changed model, for messages.
        base: the directory of the base model; None if unknown.
        weights: the directory of the changed model, if it has its own weights.
        recipe: the neurons to silence in the base, for a recipe.
        sparse: the directory of sparse.json and its masks, for a sparse model.
        benchmark: the benchmark that it was made for, if known.
    """

    name: str
    base: Path | None
    weights: Path | None = None
    recipe: Recipe | None = None
    sparse: Path | None = None
    benchmark: str | None = None


def find_sides(text: str, base: str | None, settings: Settings, root: Path) -> Sides:
    """The models for a path, a declared model's name or a cell's name.

    Args:
        base: a directory or a declared model's name; None means the fetched model with the recipe's hash.

    Raises:
        InputError: it cannot be evaluated, or the base is missing or not the recipe's.
    """
    given = _directory(base, "base", settings, root) if base else None
    if text in settings.pipeline.cells:
        cell = settings.pipeline.cells[text]
        path = root / "data" / "cells" / cell.model / cell.benchmark / PRUNED
        if not path.is_file():
            raise InputError("model", f"{text} has no {PRUNED} yet: `dsm run` makes one")
    elif text in settings.models:
        path = _directory(text, "model", settings, root)
    else:
        path = existing_path(text, field="model", root=root)
    if path.is_file():
        if path.name == RECIPE:
            return _sparse(text, path.parent, given, settings, root)
        recipe = read_recipe(path)
        return Sides(text, _base(recipe.base_sha256, given, settings, root), recipe=recipe, benchmark=recipe.benchmark)
    if not (path / "config.json").is_file():
        if (path / RECIPE).is_file():
            return _sparse(text, path, given, settings, root)
        if (path / PRUNED).is_file():
            return find_sides(str(path / PRUNED), base, settings, root)
        raise InputError(
            "model", f"{text} has no config.json, {PRUNED} or {RECIPE}: it is neither a model nor a recipe"
        )
    benchmark = sha256 = None
    if (path / PRUNED).is_file():
        recipe = read_recipe(path / PRUNED)
        benchmark, sha256 = recipe.benchmark, recipe.base_sha256
    elif (path / RECIPE).is_file():
        sha256 = read_sparse_recipe(path).base_sha256
    base_dir = _base(sha256, given, settings, root) if sha256 else given
    return Sides(text, base_dir, weights=path, benchmark=benchmark)


def _sparse(text: str, directory: Path, given: Path | None, settings: Settings, root: Path) -> Sides:
    return Sides(text, _base(read_sparse_recipe(directory).base_sha256, given, settings, root), sparse=directory)


def _directory(text: str, field: str, settings: Settings, root: Path) -> Path:
    if text in settings.models:
        directory = root / "data" / "models" / text
        if not directory.is_dir():
            raise InputError(field, f"{text} has not been fetched yet: run `dsm run --model {text}`")
        return directory
    return existing_path(text, field=field, root=root)


def _base(sha256: str | None, given: Path | None, settings: Settings, root: Path) -> Path:
    """The directory of the model with this hash."""
    if sha256 is None:
        raise InputError("model", "its base_sha256 is null: the recipe was made for a model in memory")
    if given is not None:
        if (actual := sha256_directory(given)) != sha256:
            raise InputError("base", f"{given} has hash {actual}, but the recipe is for {sha256}")
        return given
    for name in settings.models:
        directory = root / "data" / "models" / name
        if directory.is_dir() and sha256_directory(directory) == sha256:
            return directory
    raise InputError("base", f"no fetched model has the hash {sha256}; name its directory with --base")
