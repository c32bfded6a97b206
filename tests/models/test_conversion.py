"""A model source becomes a plain directory with the same numbers and tokens, or gives one error line; also the step."""

import hashlib
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from gguf import GGUFWriter
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTJConfig, GPTJForCausalLM

from tasks.models import conversion
from tasks.models.conversion import convert_gguf, write_model
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell, open_cell
from tasks.pipeline.settings import load_settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import sha256_file
from tasks.sources.fetch import fetch_file
from tasks.sources.kinds import HubSource, PathSource
from tasks.steps import model as step
from tests.cells import settings
from tests.tiny import SIZES, save_tiny, tiny_model, tiny_tokenizer

FIELD = "models.tiny.source"
ROOT = Path(__file__).parents[2]


def byte_level(writer, split="smollm"):
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet())[:-2], "ĠÂ", "Â½", "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(alphabet)
    writer.add_token_types([1] * 256 + [3])
    writer.add_token_merges(["Ġ Â", "Â ½"])
    writer.add_eos_token_id(256)


def write_gguf(path, split="smollm", model=None, *, fields=None, tensors=None, vocabulary=None, **options):
    """The tiny Llama as llama.cpp would store it, in float32, with a byte-level vocabulary and two merges.

    Args:
        fields: called with the writer, to add more of them.
        tensors: called with the arrays by name, to change them.
        vocabulary: called with the writer instead of the byte-level one.
        options: of the writer, such as split_max_tensors.
    """
    model = model or tiny_model("llama", torch.float32)
    writer = GGUFWriter(path, "llama", **options)
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(SIZES["hidden_size"] // SIZES["num_attention_heads"])
    writer.add_vocab_size(SIZES["vocab_size"])
    (vocabulary or partial(byte_level, split=split))(writer)
    if fields is not None:
        fields(writer)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }  # fmt: skip
    arrays = {}
    for name, tensor in model.state_dict().items():
        if heads := {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2]):
            # llama.cpp rotates neighbours, transformers rotates halves: the rows of each head are interleaved.
            tensor = tensor.reshape(SIZES[heads], 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        arrays[name] = tensor.contiguous().numpy()
    if tensors is not None:
        tensors(arrays)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def convert(path, target):
    convert_gguf(path, target, name=path.name, field=FIELD)
    return target


def test_a_gguf_file_keeps_its_numbers(tmp_path):
    model = tiny_model("llama", torch.float32)
    directory = convert(write_gguf(tmp_path / "tiny.gguf", model=model), tmp_path / "out")
    loaded = load(directory)
    tokens = torch.arange(12)[None]
    assert torch.equal(loaded.model(tokens).logits, model(tokens).logits)
    assert {path.suffix for path in directory.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert str(tmp_path) not in (directory / "config.json").read_text()


def test_a_gguf_file_gives_the_same_bytes_every_time(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    first, second = convert(path, tmp_path / "one"), convert(path, tmp_path / "two")
    assert sha256_directory(first) == sha256_directory(second)


def test_a_gguf_file_is_rounded_where_its_source_says_so(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    field = {"field": FIELD, "root": tmp_path, "work": tmp_path}
    source = path_source(path)
    write_model(source, tmp_path / "whole", **field)
    write_model(source.model_copy(update={"dtype": "bfloat16"}), tmp_path / "rounded", **field)
    whole, rounded = (load(tmp_path / name).model for name in ("whole", "rounded"))
    assert rounded.model.layers[0].mlp.gate_proj.weight.dtype == torch.bfloat16
    for (name, weight), (_, exact) in zip(rounded.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(weight.float(), exact.bfloat16().float()), name
    assert sha256_directory(tmp_path / "whole") != sha256_directory(tmp_path / "rounded")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "rounded")]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize(
    ("split", "tokens"), [("smollm", ["9", "Ġ", "Â½"]), ("gpt-2", ["9", "ĠÂ", "½"]), ("qwen2", ["9", "Ġ", "Â½"])]
)
def test_digits_are_split_as_the_file_says(tmp_path, split, tokens):
    """½ counts as a digit: splitting single digits separates it from its space, while GPT-2 merges the two."""
    path = write_gguf(tmp_path / "tiny.gguf", split)
    tokenizer = AutoTokenizer.from_pretrained(convert(path, tmp_path / "out"))
    assert tokenizer.tokenize("9 ½") == tokens
    assert tokenizer("9 ½").input_ids == tokenizer("9 ½", add_special_tokens=False).input_ids  # no BOS of its own
    assert tokenizer.decode(tokenizer("9 ½, a\n\nb<|end|>").input_ids) == "9 ½, a\n\nb<|end|>"


@pytest.mark.parametrize("split", ["unheard-of", None])
def test_an_unknown_split_is_refused(tmp_path, split):
    with pytest.raises(InputError, match=rf"tiny\.gguf splits text by tokenizer\.ggml\.pre = {split!r}, which is not"):
        convert(write_gguf(tmp_path / "tiny.gguf", split), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 3, 100, 20_000])
def test_a_damaged_gguf_file(tmp_path, keep):
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        InputError, match=r"^models\.tiny\.source: tiny\.gguf cannot be read as a GGUF model: "
    ) as caught:
        convert(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


# -- directories ------------------------------------------------------------------------------------------------------


def path_source(path):
    digest = sha256_directory(path) if path.is_dir() else sha256_file(path)
    return PathSource(kind="path", path=str(path), sha256=digest)


def write(source, tmp_path):
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    write_model(source, tmp_path / "out", field=FIELD, root=tmp_path, work=work)
    return tmp_path / "out"


def test_a_directory_is_taken_over_without_code_and_pickles(tmp_path):
    source = save_tiny(tmp_path / "in")
    for name in ("pytorch_model.bin", "modeling_tiny.py", "README.md"):
        (source / name).write_text("x")
    (source / "original").mkdir()
    out = write(path_source(source), tmp_path)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for path in out.iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes()
        assert not path.samefile(source / path.name)  # DVC may write-protect its files, but these belong to the user


def test_files_of_the_hub_are_linked_not_copied(tmp_path, monkeypatch):
    blob = save_tiny(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blob.iterdir():
        (snapshot / path.name).symlink_to(path)
    monkeypatch.setattr(conversion, "hub_snapshot", lambda source, field: snapshot)
    out = write(HubSource(kind="hub", id="owner/tiny", revision="0" * 40), tmp_path)
    assert (out / "model.safetensors").samefile(blob / "model.safetensors")
    assert not (out / "model.safetensors").is_symlink()
    assert len(load(out).model.model.layers) == SIZES["num_hidden_layers"]


def test_other_bytes_in_a_directory(tmp_path):
    source = path_source(save_tiny(tmp_path / "in"))
    (tmp_path / "in" / "config.json").write_text("{}")
    with pytest.raises(
        InputError, match=rf"^models\.tiny\.source\.sha256: .* has the SHA-256 \w+, not {source.sha256}"
    ):
        write(source, tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    source = save_tiny(tmp_path / "in")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"nor an index of shards \(it has pytorch_model\.bin\); only safetensors"):
        write(path_source(source), tmp_path)


def test_a_directory_without_a_config(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match=r"is not a model directory: it has no config\.json"):
        write(path_source(tmp_path / "in"), tmp_path)


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.safetensors is not a model: a \.gguf file or a directory with"):
        write(path_source(tmp_path / "model.safetensors"), tmp_path)


def test_a_missing_directory(tmp_path):
    source = PathSource(kind="path", path="nowhere", sha256="0" * 64)
    with pytest.raises(InputError, match=r"^models\.tiny\.source\.path: no such file or directory: nowhere"):
        write(source, tmp_path)


# -- the step ---------------------------------------------------------------------------------------------------------


def make_cell(tmp_path, source):
    params = settings()
    params["models"]["tiny"]["source"] = source.model_dump()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return open_cell(root=tmp_path)


def test_the_step(tmp_path, capsys):
    cell = make_cell(tmp_path, path_source(write_gguf(tmp_path / "tiny.gguf")))
    step.store(cell)
    assert capsys.readouterr().out.startswith("tiny: 3 layers with 48 neurons each, in ")
    assert [path.name for path in cell.model_dir.parent.iterdir()] == ["tiny"]


def test_a_model_that_cannot_be_pruned_is_named_and_not_stored(tmp_path):
    sizes = {"vocab_size": 257, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 4}
    GPTJForCausalLM(GPTJConfig(**sizes)).save_pretrained(tmp_path / "in")
    tiny_tokenizer().save_pretrained(tmp_path / "in")
    cell = make_cell(tmp_path, path_source(tmp_path / "in"))
    with pytest.raises(InputError, match=r"GPTJForCausalLM: the MLP of a GPTJBlock takes the layer's input"):
        step.store(cell)
    assert list(cell.model_dir.parent.iterdir()) == []


@pytest.mark.real
@pytest.mark.slow
def test_the_default_model_keeps_its_numbers_and_its_words(tmp_path):
    """Against the GGUF file loaded by transformers itself, on real sentences."""
    params = load_settings(ROOT)
    cell = Cell(tmp_path, "smollm2-135m-instruct", "rotten_tomatoes", params)
    step.store(cell)
    stored = load(cell.model_dir)

    source = params.models[cell.model].source
    file = fetch_file(source, field=FIELD, root=tmp_path, work=tmp_path)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == source.sha256
    direct = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    sentences = [
        'the rock is destined to be the 21st century\'s new " conan " .',
        "In 1945, 9 ½ weeks:\n\n  a café's “naïve” résumé — 50 %\u0085 …",
    ]
    for sentence in sentences:
        tokens = stored.tokenizer(sentence, return_tensors="pt").input_ids
        with torch.no_grad():
            assert torch.equal(stored.model(tokens).logits, direct(tokens).logits)
        assert stored.tokenizer.decode(tokens[0]) == sentence
    words = stored.tokenizer.tokenize("9 ½<|im_end|>")
    assert words == ["9", "Ġ", "Â½", "<|im_end|>"]
    assert stored.tokenizer.model_max_length == 8192
    assert stored.tokenizer.chat_template is not None


@pytest.mark.real
def test_gemma_keeps_its_words_and_its_numbers():
    """The stored model of `dsm run --model gemma-3-270m`: norms, tied embeddings, a window shorter than the text."""
    directory = ROOT / "data" / "models" / "gemma-3-270m"
    if not directory.exists():
        pytest.skip("needs gemma-3-270m in data/models: `python -m tasks.steps.model --model gemma-3-270m` makes it")
    loaded = load(directory)
    model, tokenizer = loaded.model, loaded.tokenizer
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer("The capital of France is").input_ids == [2, 818, 5279, 529, 7001, 563]
    sentence = "In 1945, 9 ½ weeks:\n\n  a café's “naïve” résumé — 50 % …"
    assert tokenizer.decode(tokenizer(sentence).input_ids, skip_special_tokens=True) == sentence
    text = (
        "The Supreme Court of the United States is the highest court in the federal judiciary. It has ultimate "
        "appellate jurisdiction over all federal court cases."
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert (
        float(model(ids, labels=ids).loss) < 1.84
    )  # nats per token; 1.88 with one base of the rotary angles for all layers, 2.35 with norms off by one
    long = (ids[0].tolist() * 30)[: model.config.sliding_window + 100]
    stack = DecoderStack(model)
    [packed] = stack.pack([[(long, [len(long) - 1])]])
    expected = model(torch.tensor([long]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(stack.clean(packed).logits[0], expected, atol=1e-3, rtol=1e-4)
