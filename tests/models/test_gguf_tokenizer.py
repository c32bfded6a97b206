"""The tokenizer of a GGUF file follows llama.cpp's rules for keys that the file lacks; the keys of the file count."""

from functools import partial

import pytest
from transformers import AutoTokenizer

from tasks.runtime.errors import InputError
from tests.models.test_conversion import byte_level, convert, write_gguf

BOS = EOS = 256  # in the byte-level vocabulary


def with_keys(writer, vocabulary, **keys):
    vocabulary(writer)
    for key, value in keys.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)


def byte_level_with_bos(writer, split):
    byte_level(writer, split)
    writer.add_bos_token_id(BOS)


def sentencepiece(writer, ids=True):
    words = ["▁", "a", "b", "▁a", "ab", "▁ab"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(230)), *words]
    tokens += [f"<{number}>" for number in range(len(tokens), 257)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(257)])
    writer.add_token_types([2, 3, 3] + [6] * 230 + [1] * 24)
    if ids:
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)


def tokenizer_of(tmp_path, vocabulary, **keys):
    path = write_gguf(tmp_path / "tiny.gguf", vocabulary=partial(with_keys, vocabulary=vocabulary, **keys))
    return AutoTokenizer.from_pretrained(convert(path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("split", "begins"),
    [
        ("llama-bpe", True), ("llama3", True), ("llama-v3", True), ("falcon3", True), ("falcon-h1", True),
        ("pixtral", True), ("midm-2.0", True), ("lfm2", True), ("jina-v5-nano", True), ("tekken", True),
        ("smollm", False), ("gpt-2", False), ("qwen2", False), ("smaug-bpe", False), ("dbrx", False), ("gpt-4o", False),
    ],
)  # fmt: skip
def test_bos_and_merges_by_the_split_of_the_file(tmp_path, split, begins):
    tokenizer = tokenizer_of(tmp_path, partial(byte_level_with_bos, split=split))
    assert tokenizer("ab").input_ids == [BOS] * begins + [64, 65]
    assert tokenizer("ab", add_special_tokens=False).input_ids == [64, 65]
    assert tokenizer.backend_tokenizer.model.ignore_merges == begins


def test_a_word_that_is_a_token_needs_no_merges(tmp_path):
    """ " ab" is a token, but no merges produce it: for Llama 3 llama.cpp uses it as a whole."""

    def vocabulary(writer, split):
        byte_level_with_bos(writer, split)
        tokens = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        tokens[200] = "Ġab"

    (tmp_path / "two").mkdir()
    assert tokenizer_of(tmp_path, partial(vocabulary, split="llama-bpe"))(" ab").input_ids == [BOS, 200]
    tokenizer = tokenizer_of(tmp_path / "two", partial(vocabulary, split="smollm"))
    assert tokenizer.convert_ids_to_tokens(tokenizer(" ab").input_ids) == ["Ġ", "a", "b"]


@pytest.mark.parametrize("split", ["llama-bpe", "tekken", "smollm", "qwen2"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_the_keys_of_a_byte_level_file_count(tmp_path, split, bos, eos):
    vocabulary = partial(byte_level_with_bos, split=split)
    tokenizer = tokenizer_of(tmp_path, vocabulary, add_bos_token=bos, add_eos_token=eos)
    assert tokenizer("ab").input_ids == [BOS] * bos + [64, 65] + [EOS] * eos


@pytest.mark.parametrize(("split", "keys"), [("llama-bpe", {}), ("smollm", {"add_bos_token": True})])
def test_a_bos_without_an_id_is_refused(tmp_path, split, keys):
    with pytest.raises(InputError, match=r"tiny\.gguf adds BOS to every text, but has no .*\.bos_token_id"):
        tokenizer_of(tmp_path, partial(byte_level, split=split), **keys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ids", [True, False])
def test_a_sentencepiece_text_begins_with_bos_and_a_space(tmp_path, ids):
    tokenizer = tokenizer_of(tmp_path, partial(sentencepiece, ids=ids))
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab a").input_ids) == ["<s>", "▁ab", "▁a"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("space", [True, False])
def test_the_keys_of_a_sentencepiece_file_count(tmp_path, bos, eos, space):
    keys = {"add_bos_token": bos, "add_eos_token": eos, "add_space_prefix": space}
    tokenizer = tokenizer_of(tmp_path, sentencepiece, **keys)
    ids = tokenizer("ab a").input_ids
    expected = ["<s>"] * bos + ["▁ab" if space else "ab", "▁a"] + ["</s>"] * eos
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    assert tokenizer.decode(ids[bos : len(ids) - eos]) == "ab a"
