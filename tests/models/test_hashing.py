"""The hash of a model depends on its tensors, its configuration and its tokenizer, and on nothing else."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.models.hashing import record_hash, recorded_hash, sha256_directory
from tasks.models.weights import RECORD
from tasks.runtime.errors import InputError
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = save_tiny(tmp_path_factory.mktemp("one"))
    return directory, sha256_directory(directory)


@pytest.fixture
def copy(model, tmp_path):
    for path in model[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def unchanged(directory):
    os.utime(directory / "config.json", (0, 0))


def link(directory):
    (directory / "model.safetensors").rename(directory.parent / "blob")
    (directory / "model.safetensors").symlink_to(directory.parent / "blob")


def another_version(directory):
    change(directory / "config.json", transformers_version="4.57.1")
    change(directory / "generation_config.json", transformers_version="4.57.1")


def other_order(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(dict(reversed(config.items()))))


def shards(directory):
    (directory / "model.safetensors").unlink()
    tiny_model("llama", torch.float32).save_pretrained(directory, max_shard_size="40KB")
    assert not (directory / "model.safetensors").exists()


def metadata(directory):
    path = directory / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "by": "another tool"})


def copies(directory):
    save_file({"a": torch.zeros(1)}, directory / "consolidated.safetensors")


def papers(directory):
    for name in ("README.md", "pruned.json", "modeling_tiny.py", "pytorch_model.bin"):
        (directory / name).write_text("x")
    (directory / "original").mkdir()
    (directory / "original" / "config.json").write_text("{}")


@pytest.mark.parametrize(
    "edit", [unchanged, link, another_version, other_order, shards, metadata, copies, papers], ids=lambda f: f.__name__
)
def test_what_no_prediction_depends_on_does_not_matter(model, copy, edit):
    edit(copy)
    assert sha256_directory(copy) == model[1]


def one_weight(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, directory / "model.safetensors")


def other_shape(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].reshape(2, -1)
    save_file(tensors, directory / "model.safetensors")


def other_name(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.bias"] = tensors.pop("model.norm.weight")
    save_file(tensors, directory / "model.safetensors")


def other_type(directory):
    tensors = load_file(directory / "model.safetensors")
    save_file({name: tensor.to(torch.float64) for name, tensor in tensors.items()}, directory / "model.safetensors")


def other_config(directory):
    change(directory / "config.json", rms_norm_eps=1e-5)


def other_tokenizer(directory):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["good"])
    tokenizer.save_pretrained(directory)


def template(directory):
    (directory / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize(
    "edit",
    [one_weight, other_shape, other_name, other_type, other_config, other_tokenizer, template],
    ids=lambda f: f.__name__,
)
def test_what_a_prediction_depends_on_matters(model, copy, edit):
    edit(copy)
    assert sha256_directory(copy) != model[1]


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_config_that_is_none(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"^model: .*config\.json is not"):
        sha256_directory(copy)


def test_a_recorded_hash_is_read_without_the_weights(model, copy, monkeypatch):
    directory, digest = copy, model[1]
    assert recorded_hash(directory) == digest  # without a record it is computed
    assert record_hash(directory) == digest
    assert sha256_directory(directory) == digest  # the record is not part of the model
    monkeypatch.setattr("tasks.models.hashing.hashed_tensors", lambda path: pytest.fail(f"reads {path}"))
    assert recorded_hash(directory) == digest
    record = (directory / RECORD).read_bytes()
    for change in ("cut", "added", "gone"):
        config = directory / "config.json"
        before = config.read_bytes()
        if change == "cut":
            config.write_bytes(before[:-1])
        elif change == "added":
            (directory / "more.json").write_text("{}")
        else:
            config.unlink()
        with pytest.raises(InputError, match=r"^model: .* is not as it was stored"):
            recorded_hash(directory)
        config.write_bytes(before)
        (directory / "more.json").unlink(missing_ok=True)
    (directory / RECORD).write_bytes(record[:20])
    with pytest.raises(InputError, match=r"^model: .*model\.sha256\.json is damaged"):
        recorded_hash(directory)
