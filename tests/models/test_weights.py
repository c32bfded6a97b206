"""If there are several copies of the weights, those that transformers loads count; damage gives one error line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.models.conversion import write_model
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.weights import model_files, tensors, weight_files
from tasks.runtime.errors import InputError
from tasks.sources.kinds import PathSource
from tasks.tracking.export import apply
from tests.method.test_recipe import GOOD
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


def save_sharded(directory):
    tiny_model("llama", torch.float32).save_pretrained(directory, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(directory)
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    return directory


def test_shards_are_those_of_the_index(tmp_path):
    directory = save_sharded(tmp_path)
    shards = sorted(directory.glob("model-*.safetensors"))
    save_file({"copy": torch.zeros(1)}, directory / "consolidated.safetensors")
    assert weight_files(directory) == shards
    assert directory / "consolidated.safetensors" not in model_files(directory)
    save_file({"lm_head.weight": torch.zeros(1)}, directory / "model.safetensors")  # transformers prefers this one
    assert weight_files(directory) == [directory / "model.safetensors"]
    assert not {"model.safetensors.index.json", *(shard.name for shard in shards)} & {
        path.name for path in model_files(directory)
    }


@pytest.mark.parametrize("name", ["../model.safetensors", "gone.safetensors", "/etc/passwd", "config.json"])
def test_an_index_that_names_another_file_is_refused(tmp_path, name):
    save_tiny(tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match="names the shard"):
        load(tmp_path / "in")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 1}'])
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="is not an index of weights"):
        weight_files(tmp_path)


def test_the_tensors_of_a_file(tmp_path):
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    assert {(t.name, t.dtype, tuple(t.shape), t.end - t.start) for t in tensors(tmp_path / "x.safetensors")} == {
        ("a", "F32", (2, 3), 24),
        ("b", "BF16", (4,), 8),
    }


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_damaged_weights_are_told_in_one_line(tmp_path, keep):
    directory = save_tiny(tmp_path)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    for use in (sha256_directory, load):
        with pytest.raises(InputError) as caught:
            use(directory)
        assert "\n" not in str(caught.value)


def test_quantized_weights_are_refused(tmp_path):
    config = save_tiny(tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match="has quantized weights"):
        load(tmp_path)


def test_a_damaged_base_is_refused_by_apply_in_one_line(tmp_path):
    directory = save_tiny(tmp_path / "base")
    (directory / "model.safetensors").write_bytes(b"x" * 20)
    recipe = tmp_path / "pruned.json"
    recipe.write_text(json.dumps(GOOD))
    with pytest.raises(InputError, match=r"^model: .*model\.safetensors is not a safetensors file: "):
        apply(recipe, directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("adapter", [True, False])
def test_an_adapter_is_refused_with_what_to_do(tmp_path, weights, adapter):
    """transformers would add it to the weights; a tool that merged it may have left it there."""
    directory = save_tiny(tmp_path / "in")
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "owner/base"}')
    if adapter:
        save_file({"lora_A.weight": torch.zeros(1)}, directory / "adapter_model.safetensors")
    if not weights:
        (directory / "model.safetensors").unlink()
        (directory / "config.json").unlink()
    which = r"beside the weights .* or remove adapter_config\.json" if weights else "only .* merge it into its base"
    source = PathSource(kind="path", path=str(directory), sha256="0" * 64)
    for use in (
        load,
        sha256_directory,
        lambda path: write_model(source, tmp_path / "out", field="f", root=tmp_path, work=tmp_path),
    ):
        with pytest.raises(InputError, match=rf"^model: .* \(adapter_config\.json\).*{which}" if weights else which):
            use(directory)
    assert not (tmp_path / "out").exists()


def test_a_tensor_of_another_shape_is_told_in_one_line(tmp_path):
    directory = save_tiny(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"^model: .*: mismatched_keys .*model\.norm\.weight"):
        load(directory)


@pytest.mark.parametrize("change", [{"hidden_act": "no_such"}, {"model_type": "no_such"}, {"num_attention_heads": 0}])
def test_a_config_that_no_model_can_be_built_of_is_told_in_one_line(tmp_path, change):
    config = save_tiny(tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InputError, match=r"^model: .* cannot be loaded: \w+") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
