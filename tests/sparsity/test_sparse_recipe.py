"""Recipes: the same weights from the base model; anything else is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.runtime.errors import InputError
from tasks.sparsity.calibration import Calibration
from tasks.sparsity.metrics import NOfM
from tasks.sparsity.sparse_recipe import MASKS, RECIPE, apply_recipe, read_sparse_recipe, write_recipe
from tasks.sparsity.weight_pruning import METHODS, prune_weights
from tasks.tracking.export import apply
from tests.sparsity.test_layers import SEQUENCES, bits
from tests.tiny import save_tiny, tiny_model

CALIBRATION = Calibration("letters", SEQUENCES, 20, 3)


def written(tmp_path, method="wanda", target=0.5, family="llama", **options):
    """A pruned model and the directory of its base, with a recipe in tmp_path / "sparse"."""
    base = save_tiny(tmp_path / "base", family)
    pruned = load(base)
    report = prune_weights(pruned, SEQUENCES, method, target, **options)
    write_recipe(tmp_path / "sparse", pruned, report, base_sha256=sha256_directory(base), calibration=CALIBRATION)
    return pruned, base


@pytest.mark.parametrize("target", [0.3, NOfM(2, 4)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_makes_the_same_weights(method, target, tmp_path):
    pruned, base = written(tmp_path, method, target)
    again = load(base)
    recipe = apply_recipe(again, base, tmp_path / "sparse")
    assert bits(again.model) == bits(pruned.model)
    assert recipe == read_sparse_recipe(tmp_path / "sparse")
    assert (recipe.sparsity, recipe.n_of_m) == ((None, (2, 4)) if isinstance(target, NOfM) else (0.3, None))
    for name, matrix in recipe.matrices.items():
        zeros = again.model.get_submodule(name).weight == 0
        assert int(zeros.sum()) == matrix.removed
        assert matrix.sparsity == matrix.removed / zeros.numel()
    if method == "magnitude":
        assert recipe.calibration is None
    else:
        assert recipe.calibration.model_dump() == {
            "name": "letters", "sha256": CALIBRATION.sha256, "sequences": 4, "length": 20, "seed": 3
        }  # fmt: skip


def test_a_permuted_recipe_holds_the_orders_in_which_its_masks_are_n_of_m(tmp_path):
    pruned, base = written(tmp_path, "ria", NOfM(2, 4), permuted=True)
    again = load(base)
    recipe = apply_recipe(again, base, tmp_path / "sparse")
    assert recipe.permuted
    assert bits(again.model) == bits(pruned.model)
    stored = load_file(tmp_path / "sparse" / MASKS)
    for name in recipe.matrices:
        weight, order = again.model.get_submodule(name).weight, stored[f"{name}.order"].long()
        assert sorted(order.tolist()) == list(range(weight.shape[1]))
        assert ((weight[:, order] == 0).view(len(weight), -1, 4).sum(2) == 2).all()


def test_masks_take_a_bit_a_weight_and_are_the_same_every_time(tmp_path):
    pruned, _ = written(tmp_path)
    weights = sum(m.rows * m.columns for m in read_sparse_recipe(tmp_path / "sparse").matrices.values())
    masks = (tmp_path / "sparse" / MASKS).read_bytes()
    assert weights / 8 < len(masks) < weights / 8 + 8000
    written(tmp_path / "again")
    assert (tmp_path / "again" / "sparse" / MASKS).read_bytes() == masks
    assert (tmp_path / "again" / "sparse" / RECIPE).read_bytes() == (tmp_path / "sparse" / RECIPE).read_bytes()
    assert pruned.model.dtype == torch.float32


def test_another_base_model_is_refused(tmp_path):
    written(tmp_path)
    other = save_tiny(tmp_path / "other", seed=1)
    loaded = load(other)
    before = bits(loaded.model)
    with pytest.raises(InputError, match="but the recipe is for"):
        apply_recipe(loaded, other, tmp_path / "sparse")
    assert bits(loaded.model) == before


def test_other_masks_are_refused(tmp_path):
    _, base = written(tmp_path)
    masks = tmp_path / "sparse" / MASKS
    data = bytearray(masks.read_bytes())
    data[-1] ^= 1
    masks.write_bytes(data)
    with pytest.raises(InputError, match=r"has SHA-256 .* but sparse.json says"):
        apply_recipe(load(base), base, tmp_path / "sparse")


def test_masks_of_another_model_are_refused(tmp_path):
    _, base = written(tmp_path)
    written(tmp_path / "phi", family="phi3")
    path = tmp_path / "sparse" / RECIPE
    content = json.loads(path.read_text())
    other = json.loads((tmp_path / "phi" / "sparse" / RECIPE).read_text())
    (tmp_path / "sparse" / MASKS).write_bytes((tmp_path / "phi" / "sparse" / MASKS).read_bytes())
    path.write_text(json.dumps(content | {"masks_sha256": other["masks_sha256"]}))
    with pytest.raises(InputError, match="does not hold the masks"):
        apply_recipe(load(base), base, tmp_path / "sparse")
    path.write_text(json.dumps(other | {"base_sha256": content["base_sha256"]}))
    with pytest.raises(InputError, match="does not have the linear layers"):
        apply_recipe(load(base), base, tmp_path / "sparse")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"method": "guess"}, "method: Input should be"),
        ({"n_of_m": [2, 4]}, "either sparsity or n_of_m is needed"),
        ({"permuted": True}, "permuted: only ria with n_of_m"),
        ({"calibration": None}, "all methods except magnitude"),
        ({"more": 1}, "more: Extra inputs"),
        ({"matrices": {"a": {"rows": 2, "columns": 2, "removed": 1, "sparsity": 0.5}}}, "1 of 2 x 2 weights"),
    ],
)
def test_recipes_that_are_none(change, message, tmp_path):
    written(tmp_path)
    path = tmp_path / "sparse" / RECIPE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_sparse_recipe(tmp_path / "sparse")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"sparse.json: No such file"):
        read_sparse_recipe(tmp_path)
    written(tmp_path)
    (tmp_path / "sparse" / MASKS).unlink()
    with pytest.raises(InputError, match=r"masks.safetensors: No such file"):
        read_sparse_recipe(tmp_path / "sparse")


@pytest.mark.parametrize("method", METHODS)
def test_the_weightsdirectory_has_the_weights_of_the_pruned_model(method, tmp_path):
    pruned, base = written(tmp_path, method)
    apply(tmp_path / "sparse" / RECIPE, base, tmp_path / "out")
    assert bits(load(tmp_path / "out").model) == bits(pruned.model)
    assert read_sparse_recipe(tmp_path / "out") == read_sparse_recipe(tmp_path / "sparse")


def test_the_weightsdirectory_keeps_the_types_of_the_base(tmp_path):
    base = save_tiny(tmp_path / "base")
    tiny_model("llama", torch.bfloat16).save_pretrained(base)
    for method, expected in (("wanda", {torch.bfloat16}), ("sparsegpt", {torch.bfloat16, torch.float32})):
        pruned = load(base, wide=True)
        report = prune_weights(pruned, SEQUENCES, method, 0.5)
        directory = tmp_path / method
        write_recipe(directory, pruned, report, base_sha256=sha256_directory(base), calibration=CALIBRATION)
        apply(directory / RECIPE, base, tmp_path / f"{method}-out")
        weights = load_file(tmp_path / f"{method}-out" / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == expected
        assert bits(load(tmp_path / f"{method}-out", wide=True).model) == bits(pruned.model)


def test_another_base_is_refused_and_nothing_written(tmp_path):
    written(tmp_path)
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="but the recipe is for"):
        apply(tmp_path / "sparse" / RECIPE, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
