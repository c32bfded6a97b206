"""The tokenizer of a GGUF file. If transformers and llama.cpp (llama-vocab.cpp) differ, llama.cpp's rules are used."""

from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import decoders, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from tasks.runtime.errors import InputError

# Values of `tokenizer.ggml.pre`, which selects how text is split before byte-level merges. transformers knows many of
# them and falls back to the split of GPT-2, which is wrong for models that split numbers into digits.
GPT2_SPLIT = {"gpt-2", "mpt", "olmo", "jais", "trillion", "granite-docling"}
DIGIT_SPLIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

# llama.cpp derives two defaults for byte-level files from `tokenizer.ggml.pre`: whether a text begins with BOS, and
# whether a word that is a token is used without merges. transformers derives neither.
LLAMA3 = {
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
}  # fmt: skip
ADDS_BOS = LLAMA3 | {"chameleon"}
IGNORES_MERGES = LLAMA3 | {"minicpm5", "youtu", "granite-embed-multi-97m"}

# The special tokens of a SentencePiece vocabulary (`tokenizer.ggml.model` llama) whose file does not name them.
SENTENCEPIECE_IDS = {"unk": ("unknown", 0), "bos": ("bos", 1), "eos": ("eos", 2)}


def gguf_tokenizer(file: Path, reader: GGUFReader, *, name: str, field: str) -> Any:
    """The tokenizer of a GGUF file. The keys of the file take precedence over defaults.

    Raises:
        InputError: the tokenizer splits text by an unknown rule, or adds a token for which the file has no id.
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    keys = {
        key.removeprefix("tokenizer.ggml."): entry
        for key, entry in reader.fields.items()
        if key.startswith("tokenizer.ggml.")
    }
    said = {
        key: keys[key].contents()
        for key in ("model", "pre", "add_bos_token", "add_eos_token", "add_space_prefix")
        if key in keys
    }
    model, split = said.get("model"), said.get("pre")
    _correct_split(tokenizer, split, name, field)
    if model == "gpt2" and split in IGNORES_MERGES:
        tokenizer.backend_tokenizer.model.ignore_merges = True
    if model == "llama":
        for token, (key, number) in SENTENCEPIECE_IDS.items():
            if f"{key}_token_id" not in keys:
                setattr(tokenizer, f"{token}_token", tokenizer.convert_ids_to_tokens(number))
        if "add_space_prefix" in said:
            _set_space_prefix(tokenizer, bool(said["add_space_prefix"]))
    starts = model == "llama" or (model == "gpt2" and split in ADDS_BOS)
    _set_end(tokenizer, "bos", bool(said.get("add_bos_token", starts)), name, field)
    _set_end(tokenizer, "eos", bool(said.get("add_eos_token", False)), name, field)
    return tokenizer


def _correct_split(tokenizer: Any, split: str | None, name: str, field: str) -> None:
    """Sets the split that the file declares, if transformers fell back to that of GPT-2."""
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) or split in GPT2_SPLIT:
        return
    if split not in DIGIT_SPLIT:
        raise InputError(
            field,
            f"{name} splits text by tokenizer.ggml.pre = {split!r}, which is not supported; supported are "
            f"{sorted(GPT2_SPLIT | DIGIT_SPLIT)} and those of transformers; use the model's safetensors directory",
        )
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _set_end(tokenizer: Any, end: str, adds: bool, name: str, field: str) -> None:
    """Sets whether every text begins with BOS, or ends with EOS (`end`)."""
    if adds and getattr(tokenizer, f"{end}_token") is None:
        raise InputError(field, f"{name} adds {end.upper()} to every text, but has no tokenizer.ggml.{end}_token_id")
    if getattr(tokenizer, f"add_{end}_token") != adds:
        setattr(tokenizer, f"add_{end}_token", adds)
        tokenizer.init_kwargs[f"add_{end}_token"] = adds  # save_pretrained writes these values


def _set_space_prefix(tokenizer: Any, adds: bool) -> None:
    """Sets whether a text is tokenized as if it began with a space; transformers does not read the key."""
    backend = tokenizer.backend_tokenizer
    spaces = normalizers.Replace(" ", "▁")
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if adds == backend.encode("a", add_special_tokens=False).tokens[0].startswith("▁"):
        return
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if adds else spaces
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence([*decoder, decoders.Strip(" ", left=1)] if adds else decoder)
    tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = adds
