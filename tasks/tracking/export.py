"""Export of pruned models as plain Hugging Face directories, which any tool for such models can load."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tasks.method.recipe import Recipe, read_recipe
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.weights import model_files, weight_files
from tasks.pipeline.cell import Cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import replacing
from tasks.sparsity import sparse_recipe
from tasks.tracking.model_card import model_card
from tasks.tracking.row_places import row_places


def export(cell: Cell, out: Path) -> None:
    """Writes the cell's pruned model to `out`: safetensors, tokenizer, model card and recipe.

    Raises:
        InputError: the cell has no pruned.json yet, or `out` exists.
    """
    for path in (cell.pruned, cell.evaluation):
        if not path.is_file():
            raise InputError("cell", f"{cell.name} has no {path.name} yet; run `dsm run` for it first")
    _write([cell.pruned], cell.model_dir, out, model_card(cell))


def apply(recipe: Path, model_dir: Path, out: Path, *more: Path) -> None:
    """Writes the model in `model_dir`, pruned by the recipe, to `out`.

    Several recipes of one base model can be applied together, if each is for a different layer. Their gains need not
    add up, since each was chosen and evaluated alone.

    Args:
        recipe, more: files like pruned.json; or one sparse.json with its masks in the same directory.

    Raises:
        InputError: a file is not a recipe, the recipe is for another model (by hash), two recipes are for one layer, or
            `out` exists.
    """
    sparse = [path for path in (recipe, *more) if path.name == sparse_recipe.RECIPE]
    if sparse and more:
        raise InputError(str(sparse[0]), "is of a weight-pruned model and cannot be combined with other recipes")
    if sparse:
        _write_sparse(recipe.parent, model_dir, out)
    else:
        _write([recipe, *more], model_dir, out, None)


def _write(paths: Sequence[Path], model_dir: Path, out: Path, card: str | None) -> None:
    recipes = [read_recipe(path) for path in paths]
    layers: dict[int, Path] = {}
    for path, recipe in zip(paths, recipes, strict=True):
        if recipe.base_sha256 is None:
            raise InputError(f"{path}: base_sha256", "is null: this recipe was made for a model in memory")
        if recipe.base_sha256 != recipes[0].base_sha256:
            raise InputError(f"{path}: base_sha256", f"is not that of {paths[0]}: the recipes are of different models")
        if recipe.layer in layers:
            raise InputError(
                f"{path}: layer", f"{recipe.layer} is pruned by {layers[recipe.layer]}, too; name one of the two"
            )
        layers[recipe.layer] = path
    with _copy(model_dir, out, str(recipes[0].base_sha256)) as temporary:
        for path, recipe in zip(paths, recipes, strict=True):
            _silence(temporary, recipe)
            shutil.copyfile(
                path, temporary / ("pruned.json" if len(paths) == 1 else f"pruned-layer-{recipe.layer}.json")
            )
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def _copy(model_dir: Path, out: Path, base_sha256: str) -> Iterator[Path]:
    """A copy of the model, which can be changed in the body and then becomes `out`."""
    if out.exists():
        raise InputError("out", f"{out} exists already; name a directory that does not")
    if not (model_dir / "config.json").is_file():
        raise InputError("model", f"{model_dir} is not a model directory: it has no config.json")
    actual = sha256_directory(model_dir)
    if actual != base_sha256:
        raise InputError("model", f"{model_dir} has hash {actual}, but the recipe is for {base_sha256}")
    with replacing(out) as temporary:
        temporary.mkdir()
        for file in model_files(model_dir):
            shutil.copyfile(file, temporary / file.name)
        try:
            yield temporary
        except SafetensorError as error:  # a full disk, or a damaged file
            raise InputError("model", f"its weights cannot be read or written: {error}") from None


def _write_sparse(directory: Path, model_dir: Path, out: Path) -> None:
    """Replaces the pruned matrices in a copy of the base model; nothing else changes.

    Types do not change either, except with SparseGPT: the weights that it has updated stay in float32.
    """
    recipe = sparse_recipe.read_sparse_recipe(directory)
    with _copy(model_dir, out, recipe.base_sha256) as temporary:
        loaded = load(model_dir, wide=True)
        sparse_recipe.apply_recipe(loaded, model_dir, directory)
        pruned = {f"{name}.weight": loaded.model.get_submodule(name).weight for name in recipe.matrices}
        written = set()
        for path in weight_files(temporary):
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                contents = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            for name in pruned.keys() & contents.keys():
                kept = pruned[name].cpu()
                contents[name] = kept if recipe.method == "sparsegpt" else kept.to(contents[name].dtype)
                written.add(name)
            save_file(contents, path, metadata=metadata)
        if missing := sorted(pruned.keys() - written):
            raise InputError("model", f"no tensor {missing[0]} in its safetensors files, whose layer the recipe prunes")
        for name in (sparse_recipe.RECIPE, sparse_recipe.MASKS):
            shutil.copyfile(directory / name, temporary / name)


def _silence(directory: Path, recipe: Recipe) -> None:
    """Zeroes the rows and their biases in the safetensors files; nothing else changes, also not the types."""
    places = row_places(directory, recipe)
    for path in sorted({place.file for place in places}):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            contents = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        for place in places:
            if place.file == path:
                rows = torch.tensor(place.rows(recipe.neurons), dtype=torch.long)
                tensor = contents[place.tensor]
                tensor = tensor.flatten(0, 1) if tensor.dim() == 3 else tensor  # experts that are stored together
                tensor.index_fill_(place.dim, rows, 0)
        save_file(contents, path, metadata=metadata)
