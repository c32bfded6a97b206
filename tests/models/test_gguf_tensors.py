"""A GGUF model is read with all of its tensors, from one file or from all shards, or refused with their names."""

import hashlib
import re
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tasks.models.gguf_tensors import check_tensors
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.runtime.errors import InputError
from tasks.sources.kinds import PathSource
from tasks.steps import model as step
from tests.models.test_conversion import FIELD, convert, make_cell, path_source, write, write_gguf
from tests.tiny import FAMILIES, LLAMA3_ROPE, SIZES, tiny_model

GATE = "blk.1.ffn_gate.weight"


def split_gguf(directory, **options):
    """The tiny Llama over several files; the first of them."""
    directory.mkdir(exist_ok=True)
    write_gguf(directory / "tiny.gguf", **{"split_max_tensors": 13} | options)
    return sorted(directory.glob("tiny-*.gguf"))


def sha256_of(paths):
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def refused(tmp_path, source, message):
    """Checks that the step refuses the source with a matching line, and stores nothing."""
    cell = make_cell(tmp_path, source)
    with pytest.raises(InputError, match=message) as caught:
        step.store(cell)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("models.tiny.source")
    assert not cell.model_dir.exists()
    return str(caught.value)


# -- what is missing, superfluous, or of another shape ----------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor", [GATE, "token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.2.ffn_norm.weight"]
)
def test_a_tensor_that_is_missing_is_named(tmp_path, tensor):
    path = write_gguf(tmp_path / "tiny.gguf", tensors=lambda arrays: arrays.pop(tensor))
    refused(tmp_path, path_source(path), rf"tiny\.gguf lacks the tensors {re.escape(tensor)}$")


def test_many_missing_tensors_are_counted(tmp_path):
    def without_layers(arrays):
        for name in [name for name in arrays if name.startswith(("blk.1.", "blk.2."))]:
            del arrays[name]

    path = write_gguf(tmp_path / "tiny.gguf", tensors=without_layers)
    line = refused(tmp_path, path_source(path), r"lacks the tensors blk\.1\.attn_q\.weight, .* and 6 more$")
    assert line.count("blk.") == 12


def test_a_tensor_of_another_name_is_named_beside_the_one_that_is_missing(tmp_path):
    def rename(arrays):
        arrays["blk.1.ffn_gatee.weight"] = arrays.pop(GATE)

    path = write_gguf(tmp_path / "tiny.gguf", tensors=rename)
    message = rf"lacks the tensors {GATE}; .* have no place in the model: blk\.1\.ffn_gatee\.weight$"
    refused(tmp_path, path_source(path), message)


@pytest.mark.parametrize(
    "tensor", ["blk.0.attn_q_norm.weight", "blk.3.ffn_up.weight", "blk.1.attn_q.bias", "mm.0.weight"]
)
def test_a_tensor_that_has_no_place_in_the_model_is_named(tmp_path, tensor):
    path = write_gguf(
        tmp_path / "tiny.gguf", tensors=lambda arrays: arrays.update({tensor: np.ones(32, dtype=np.float32)})
    )
    refused(tmp_path, path_source(path), rf"have no place in the model: {re.escape(tensor)}$")


def test_tables_that_nothing_reads_are_no_fault(tmp_path):
    unused = {"blk.0.attn_rot_embd.weight": np.ones(4, dtype=np.float32)}
    path = write_gguf(tmp_path / "tiny.gguf", tensors=lambda arrays: arrays.update(unused))
    assert len(load(convert(path, tmp_path / "out")).model.model.layers) == 3


@pytest.mark.parametrize("tensor", [GATE, "blk.0.attn_q.weight", "token_embd.weight", "output_norm.weight"])
@pytest.mark.parametrize("change", ["shorter", "turned"])
def test_a_tensor_of_another_shape_is_named(tmp_path, tensor, change):
    def reshape(arrays):
        array = arrays[tensor]
        if change == "turned" and array.ndim == 2 and array.shape[0] != array.shape[1]:
            arrays[tensor] = np.ascontiguousarray(array.T)
        else:
            arrays[tensor] = array[:-2].copy()

    path = write_gguf(tmp_path / "tiny.gguf", tensors=reshape)
    parameter = {GATE: "gate_proj", "token_embd.weight": "embed_tokens"}.get(tensor, tensor)
    refused(
        tmp_path,
        path_source(path),
        rf"({re.escape(tensor)} has the shape|has weights of the wrong shape: .*{parameter})",
    )


def test_two_tensors_of_one_name_are_refused(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    data = path.read_bytes()
    assert data.count(b"blk.1.ffn_gate.weight") == 1
    path.write_bytes(data.replace(b"blk.1.ffn_gate.weight", b"blk.0.ffn_gate.weight"))
    refused(tmp_path, path_source(path), r"two tensors named blk\.0\.ffn_gate\.weight")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"olmo2"}))
def test_the_tensors_of_every_family_are_known_by_their_names(tmp_path, family):
    """No complete file is refused. transformers cannot read GGUF files of OLMo-2."""
    model = tiny_model(family, torch.float32)
    if family == "qwen3":  # transformers does not read the width of its heads from GGUF files
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=128, tie_word_embeddings=True))
    name = {"llama3": "llama", "mistral": "llama"}.get(family, family)
    architecture = next(key for key, value in MODEL_ARCH_NAMES.items() if value == name)
    names = get_tensor_name_map(architecture, SIZES["num_hidden_layers"])
    tied = model.config.tie_word_embeddings
    shapes = {}
    for parameter, tensor in model.state_dict().items():
        stem, suffix = parameter.rsplit(".", 1)
        if not (tied and stem == "lm_head"):
            shapes[f"{names.get_name(stem)}.{suffix}"] = tuple(tensor.shape)

    writer = GGUFWriter(tmp_path / "m.gguf", name)
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(512)
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_key_length(8)
    writer.add_pad_token_id(0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_token_list([f"<{number}>" for number in range(SIZES["vocab_size"])])
    if not tied:
        writer.add_tensor("output.weight", np.zeros((1, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if family == "llama3":  # a Llama of transformers 5 may be configured with biases, GGUF files have none
        shapes = {tensor: shape for tensor, shape in shapes.items() if not tensor.endswith(".bias")}
    reader = GGUFReader(tmp_path / "m.gguf")
    check = {"absent": [], "name": "m.gguf", "field": FIELD}
    check_tensors(tmp_path / "m.gguf", reader, shapes, **check)
    for tensor in shapes:
        with pytest.raises(InputError, match=rf"lacks the tensors {re.escape(tensor)}$"):
            check_tensors(tmp_path / "m.gguf", reader, {t: s for t, s in shapes.items() if t != tensor}, **check)


# -- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"split_max_tensors": 4}, {"small_first_shard": True}])
def test_all_shards_are_the_model(tmp_path, options):
    paths = split_gguf(tmp_path / "in", **options)
    assert len(paths) > 2
    source = PathSource(kind="path", path=f"in/{paths[0].name}", sha256=sha256_of(paths))
    directory = write(source, tmp_path)
    whole = convert(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "whole")
    assert sha256_directory(directory) == sha256_directory(whole)


@pytest.mark.parametrize("shard", [1, 2])
def test_the_hash_covers_every_shard(tmp_path, shard):
    paths = split_gguf(tmp_path / "in")
    source = PathSource(kind="path", path=str(paths[0]), sha256=sha256_of(paths))
    data = bytearray(paths[shard].read_bytes())
    data[-40] ^= 1
    paths[shard].write_bytes(data)
    refused(tmp_path, source, rf"sha256: .* with the 2 shards beside it has the SHA-256 {sha256_of(paths)}, not")


def test_a_first_shard_alone_is_refused_with_what_is_missing(tmp_path):
    first, *others = split_gguf(tmp_path / "in")
    for path in others:
        path.unlink()
    line = refused(tmp_path, path_source(first), r"tiny-00001-of-00003\.gguf lacks the tensors blk\.")
    assert "; tiny-00002-of-00003.gguf, tiny-00003-of-00003.gguf must be beside in/" not in line
    assert "tiny-00002-of-00003.gguf, tiny-00003-of-00003.gguf must be beside" in line


def test_one_shard_that_is_missing_is_named(tmp_path):
    paths = split_gguf(tmp_path / "in", small_first_shard=True)
    source = PathSource(kind="path", path=str(paths[0]), sha256=sha256_of(paths))
    paths[2].unlink()
    line = refused(tmp_path, source, rf"lacks the tensors .*; {re.escape(paths[2].name)} must be beside ")
    assert paths[1].name not in line


@pytest.mark.parametrize("number", [1, 2])
def test_another_shard_than_the_first_is_refused(tmp_path, number):
    paths = split_gguf(tmp_path / "in")
    refused(tmp_path, path_source(paths[number]), rf"is shard {number + 1} of 3 of a model .* name the first one")


def test_a_first_shard_under_another_name_is_refused(tmp_path):
    shutil.move(split_gguf(tmp_path / "in")[0], tmp_path / "tiny.gguf")
    refused(tmp_path, path_source(tmp_path / "tiny.gguf"), r"tiny\.gguf is shard 1 of 3 .*-00001-of-00003\.gguf")


def test_shards_that_disagree_are_refused(tmp_path):
    paths = split_gguf(tmp_path / "in")
    originals = [path.read_bytes() for path in paths]

    def source():
        return PathSource(kind="path", path=str(paths[0]), sha256=sha256_of(paths))

    shutil.copy(paths[1], paths[2])
    refused(tmp_path, source(), r"tiny-00003-of-00003\.gguf says that it is shard 2 of 3")
    paths[2].write_bytes(originals[2])

    shutil.copy(split_gguf(tmp_path / "four", split_max_tensors=8)[1], paths[1])
    refused(tmp_path, source(), r"tiny-00002-of-00003\.gguf says that it is shard 2 of 4")
    paths[1].write_bytes(originals[1])

    def without(arrays):
        arrays.pop("blk.2.ffn_norm.weight")

    shutil.copy(split_gguf(tmp_path / "less", tensors=without)[2], paths[2])
    refused(tmp_path, source(), r"announces \d+ tensors in all shards \(split\.tensors\.count\), but they have 29")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    paths = split_gguf(tmp_path / "in")
    data = paths[1].read_bytes()
    inside = next(m for m in re.findall(rb"blk\.1\.\w+\.weight", data))
    paths[1].write_bytes(data.replace(inside, inside.replace(b"blk.1", b"blk.0")))
    source = PathSource(kind="path", path=str(paths[0]), sha256=sha256_of(paths))
    twice = inside.replace(b"blk.1", b"blk.0").decode()
    refused(
        tmp_path, source,
        rf"the tensor {re.escape(twice)} is in two shards, tiny-00001-of-00003\.gguf and tiny-00002-of-00003\.gguf",
    )  # fmt: skip


def test_a_shard_of_another_kind_of_model_is_refused(tmp_path):
    paths = split_gguf(tmp_path / "in")
    with_field = GGUFWriter(tmp_path / "x.gguf", "qwen2")
    with_field.add_uint16("split.no", 1)
    with_field.add_uint16("split.count", 3)
    with_field.add_int32("split.tensors.count", 30)
    for tensor in GGUFReader(paths[1]).tensors:
        with_field.add_tensor(tensor.name, np.array(tensor.data))
    with_field.write_header_to_file()
    with_field.write_kv_data_to_file()
    with_field.write_tensors_to_file()
    with_field.close()
    shutil.copy(tmp_path / "x.gguf", paths[1])
    source = PathSource(kind="path", path=str(paths[0]), sha256=sha256_of(paths))
    refused(tmp_path, source, r"shard 2 of 3 has a different general\.architecture from the first one")


# -- rotary angles ----------------------------------------------------------------------------------------------------


def llama31(rope):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope)).eval().requires_grad_(False)


def test_the_rotary_factors_of_llama_3_1_are_read(tmp_path):
    rope = LLAMA3_ROPE | {"original_max_position_embeddings": 8192}
    model = llama31(rope)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, 8, 2) / 8)
    factors = plain / model.model.rotary_emb.inv_freq
    assert factors.max() == 8
    path = write_gguf(
        tmp_path / "tiny.gguf",
        model=model,
        fields=lambda writer: writer.add_rope_freq_base(rope["rope_theta"]),
        tensors=lambda arrays: arrays.update({"rope_freqs.weight": factors.numpy()}),
    )
    loaded = load(convert(path, tmp_path / "out")).model
    assert loaded.config.rope_parameters == rope
    tokens = torch.arange(200)[None]
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_other_rotary_factors_are_refused_and_ones_change_nothing(tmp_path):
    for factors, name in (([1, 2, 3, 4], "other"), ([1, 1, 1, 1], "ones")):
        array = np.array(factors, dtype=np.float32)
        path = write_gguf(
            tmp_path / f"{name}.gguf", tensors=lambda arrays, a=array: arrays.update({"rope_freqs.weight": a})
        )
        if name == "ones":
            assert load(convert(path, tmp_path / "out")).model.config.rope_parameters["rope_type"] == "default"
        else:
            refused(tmp_path, path_source(path), r"factors that are not those of Llama 3\.1 \(rope_freqs\.weight\)")
