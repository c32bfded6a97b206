"""Weights from a recipe: a plain Hugging Face directory that any tool for such models loads."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tasks.evidence.verdict import method_name
from tasks.method.recipe import Recipe, read_recipe
from tasks.method.scores import read_scores
from tasks.models.gated import PLACES
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.weights import model_files, tensors, weight_files
from tasks.pipeline.cell import Cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, replacing
from tasks.sparsity import sparse_recipe


def export(cell: Cell, out: Path) -> None:
    """Writes the cell's pruned model to `out`: safetensors, tokenizer, model card with the evidence, recipe.

    Raises:
        InputError: the cell has no pruned.json yet, or `out` exists.
    """
    for path in (cell.pruned, cell.evaluation):
        if not path.is_file():
            raise InputError("cell", f"{cell.name} has no {path.name} yet; run `dsm run` for it first")
    _write(cell.pruned, cell.model_dir, out, _card(cell))


def apply(recipe: Path, model_dir: Path, out: Path) -> None:
    """Writes the model in `model_dir`, pruned as the recipe says, to `out`.

    Args:
        recipe: pruned.json, or sparse_recipe.json with its masks beside it.

    Raises:
        InputError: not a recipe, not the model it was made for (by hash), or `out` exists.
    """
    if recipe.name == sparse_recipe.RECIPE:
        _write_sparse(recipe.parent, model_dir, out)
    else:
        _write(recipe, model_dir, out, None)


def _write(path: Path, model_dir: Path, out: Path, card: str | None) -> None:
    recipe = read_recipe(path)
    if recipe.base_sha256 is None:
        raise InputError(f"{path}: base_sha256", "is null: this recipe was made for a model in memory")
    with _copy(model_dir, out, recipe.base_sha256) as temporary:
        _silence(temporary, recipe)
        shutil.copyfile(path, temporary / "pruned.json")
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def _copy(model_dir: Path, out: Path, base_sha256: str) -> Iterator[Path]:
    """A copy of the model to work on; it becomes `out` at the end."""
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
    """Writes the pruned matrices over those of the base; nothing else changes.

    Types stay, too, but for SparseGPT: the weights that it moved are kept in float32, the type they were computed in.
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
    """Zeroes the rows in the one safetensors file that holds them; nothing else changes, types included."""
    places = {name: (part, parts) for name, part, parts in PLACES[recipe.projection]}
    wanted = re.compile(rf"(?:.+\.)?layers\.{recipe.layer}\.[a-z_]+\.({'|'.join(places)})\.weight")
    found = [(p, t.name, m[1]) for p in weight_files(directory) for t in tensors(p) if (m := wanted.fullmatch(t.name))]
    if len(found) != 1:
        raise InputError(
            "model",
            f"{len(found) or 'no'} tensors *layers.{recipe.layer}.*.({' or '.join(places)}).weight in its safetensors "
            "files; one is needed",
        )
    path, name, layer = found[0]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        contents = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    part, parts = places[layer]
    if contents[name].shape[0] != parts * recipe.d_ff:
        raise InputError(
            "model", f"{name} has {contents[name].shape[0]} rows, but the recipe is for {parts} x {recipe.d_ff}"
        )
    contents[name][torch.tensor(recipe.neurons, dtype=torch.long) + part * recipe.d_ff] = 0
    save_file(contents, path, metadata=metadata)


def _card(cell: Cell) -> str:
    recipe, evaluation = read_recipe(cell.pruned), read_json(cell.evaluation)
    base, pruned, random = (evaluation["systems"][name] for name in ("base", "pruned", "random"))
    test = evaluation["comparisons"]["pruned_vs_base"]
    # As the model sees them; where rows differ, the template that makes them.
    options = evaluation["options"] or cell.benchmark_spec.options
    method = method_name(read_scores(cell.scores).header)
    chat = f" (through the chat template, told the date {told})" if (told := cell.benchmark_spec.chat) else ""
    front = {"base_model": cell.model, "tags": ["pruned", "dsm"], "license": cell.model_spec.licence}
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    return f"""---
{lines}
---
# {cell.model}, pruned for {cell.benchmark}

{len(recipe.neurons)} of the {recipe.d_ff} neurons (rows of `{recipe.projection}`) of layer {recipe.layer} are zeroed
({recipe.fraction:.0%}). They were chosen by {method} and a grid search on {recipe.adaptation.n} labeled
training examples (method: arXiv 2507.09185). Shapes are unchanged: the model loads and runs like its base.

| system | accuracy | standard error |
|---|---|---|
| base | {base["accuracy"]:.4f} | {base["stderr"]:.4f} |
| pruned | {pruned["accuracy"]:.4f} | {pruned["stderr"]:.4f} |
| random neurons ({len(random["by_seed"])} draws) | {random["accuracy"]:.4f} | {random["stderr"]:.4f} |

{evaluation["n"]} held-out rows of {cell.benchmark}; the random neurons are as many, of the same layer.
Pruned minus base: {test["difference"]:+.4f} ± {test["stderr"]:.4f}, exact McNemar p = {test["p"]:.3g}.
Answers are read as the most probable of the options {json.dumps(options, ensure_ascii=False)} after the prompt{chat}:

```
{cell.benchmark_spec.prompt}
```

`pruned.json` is the recipe: `dsm apply pruned.json --model BASE --out DIR` makes these weights from the base model
with hash `{recipe.base_sha256}`.
"""
