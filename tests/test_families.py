"""Every family through model step and exporter: the pruned directory in plain transformers is the edited model."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from tasks import export as exporter
from tasks.benchmarks.encoding import encode
from tasks.benchmarks.scoring import answers_without
from tasks.export import apply, export
from tasks.model import store
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.models.weights import model_files
from tasks.pipeline.cell import open_cell
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import write_json
from tests.cells import settings, write_cell
from tests.tiny import FAMILIES, SIZES, rows, save_tiny, tiny_model, tiny_tokenizer

TIED = {"llama3", "qwen3", "gemma2", "gemma3"}
SILENT = list(range(0, SIZES["intermediate_size"], 3))
RECIPE = {
    "format": 1, "model": "tiny", "benchmark": "reviews", "projection": "gate_proj", "layer": 1,
    "fraction": 1 / 3, "layers": SIZES["num_hidden_layers"], "d_ff": SIZES["intermediate_size"], "neurons": SILENT,
    "adaptation": {"n": 10, "accuracy": 0.9, "margin": 0.1, "base_accuracy": 0.5, "base_margin": 0.0},
    "trail": [{"rule": "accuracy", "best": 0.9, "tied": 1}],
}  # fmt: skip
TOKENS = torch.arange(2, 14)[None]


def stored(root, source):
    """The cell of a project in `root` after the model step."""
    cell = write_cell(root, layers=RECIPE["layers"], d_ff=RECIPE["d_ff"], n=20)
    params = settings()
    pin = {"kind": "path", "path": str(source), "sha256": sha256_directory(source)}
    params["models"]["tiny"]["source"] = pin
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    cell = open_cell(root=root)
    store(cell)
    write_json(cell.pruned, RECIPE | {"base_sha256": sha256_directory(cell.model_dir)})
    return cell


def plain(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_directory_is_the_edited_model(family, tmp_path):
    source = save_tiny(tmp_path / "source", family)
    cell = stored(tmp_path / "project", source)
    export(cell, tmp_path / "exported")
    apply(cell.pruned, source, tmp_path / "applied")

    edited = plain(source)
    rows(edited, 1)[torch.tensor(SILENT)] = 0
    for name in ("exported", "applied"):
        model = plain(tmp_path / name)
        for (key, value), expected in zip(model.state_dict().items(), edited.state_dict().values(), strict=True):
            assert torch.equal(value, expected), key
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert tied == (family in TIED) == ("lm_head.weight" not in stored_names(tmp_path / name))

    loaded = load(cell.model_dir)
    row = encode(loaded.tokenizer, "a warm film :", [" good", " bad"], 100)
    [found] = answers_without(DecoderStack(loaded.model), [row], 1, [np.array(SILENT)], advance=lambda _: None).logprobs
    for option, value in zip(row.options, found[0], strict=True):
        logprobs = edited(torch.tensor([[*row.prompt, *option]])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[len(row.prompt) - 1 + i, token]) for i, token in enumerate(option))
        assert value == pytest.approx(expected, abs=2e-3)


def stored_names(directory):
    from tasks.models.weights import tensors, weight_files

    return {tensor.name for path in weight_files(directory) for tensor in tensors(path)}


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_shards_are_pruned_and_no_copy_of_the_weights_is_taken_along(family, tmp_path):
    source = tmp_path / "source"
    tiny_model(family, torch.float32).save_pretrained(source, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(source)
    [first, *_] = shards = sorted(path.name for path in source.glob("model-*.safetensors"))
    assert len(shards) > 2
    (source / "consolidated.safetensors").write_bytes((source / first).read_bytes())
    cell = stored(tmp_path / "project", source)
    export(cell, tmp_path / "exported")
    apply(cell.pruned, source, tmp_path / "applied")
    edited = plain(source)
    rows(edited, 1)[torch.tensor(SILENT)] = 0
    for directory in (cell.model_dir, tmp_path / "exported", tmp_path / "applied"):
        assert sorted(path.name for path in directory.glob("*.safetensors")) == shards
        if directory != cell.model_dir:
            assert torch.equal(plain(directory)(TOKENS).logits, edited(TOKENS).logits)
    assert len(model_files(tmp_path / "exported")) == len(model_files(source)) + 1  # pruned.json


def test_the_same_weights_saved_by_another_version_are_the_same_base(tmp_path):
    source = save_tiny(tmp_path / "source")
    cell = stored(tmp_path / "project", source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"transformers_version": "4.57.1"}, indent=4))
    apply(cell.pruned, source, tmp_path / "applied")
    assert (tmp_path / "applied" / "pruned.json").is_file()


def test_a_tensor_that_is_not_there_or_has_other_rows(tmp_path):
    cell = stored(tmp_path / "project", save_tiny(tmp_path / "source"))
    digest = sha256_directory(cell.model_dir)
    for change, message in (
        ({"layer": 5, "layers": 6}, "no tensors .*layers.5"),
        ({"d_ff": 60}, "has 48 rows, but the recipe is for 1 x 60"),
    ):
        write_json(cell.pruned, RECIPE | {"base_sha256": digest} | change)
        with pytest.raises(InputError, match=message):
            apply(cell.pruned, cell.model_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    cell = stored(tmp_path / "project", save_tiny(tmp_path / "source"))

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(exporter, "save_file", full)
    with pytest.raises(InputError, match=r"^model: its weights cannot be read or written: .*No space left"):
        apply(cell.pruned, cell.model_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
