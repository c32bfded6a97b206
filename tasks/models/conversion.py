"""Conversion of a model source to a plain Hugging Face directory: config.json, safetensors weights, tokenizer files.

A GGUF file is dequantized once, to float32 or the dtype of its source. The files of a directory are copied unchanged,
without pickled weights and code, since both can run arbitrary code when they are loaded.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.utils import logging

from tasks.models.checks import as_input_error
from tasks.models.gguf_shards import shards, write_joined
from tasks.models.gguf_tensors import check_report, check_tensors, set_rope_factors
from tasks.models.gguf_tokenizer import gguf_tokenizer
from tasks.models.hashing import sha256_directory
from tasks.models.weights import model_files
from tasks.runtime.errors import InputError
from tasks.sources.fetch import check_sha256, fetch_file, hub_snapshot, local_path
from tasks.sources.kinds import HubSource, PathSource, WheelSource, WheelsSource

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def write_model(
    source: WheelSource | WheelsSource | HubSource | PathSource, target: Path, *, field: str, root: Path, work: Path
) -> None:
    """Writes the model that `source` names to the new directory `target`; the same source gives the same bytes.

    `field` is the source's place in params.yaml, `root` the project's directory, `work` a temporary one for downloads.

    Raises:
        InputError: the source cannot be fetched, its hash differs, or it is not a model in a format that is read here.
    """
    if isinstance(source, HubSource):
        # The hub's cache never changes a file, so the weights can be links and need no second copy on the disk.
        return _take_over(hub_snapshot(source, field=field), target, place=_link, name=source.id, field=field)
    if isinstance(source, PathSource) and (path := local_path(source, field=field, root=root)).is_dir():
        check_sha256(sha256_directory(path), source.sha256, what=source.path, field=field)
        return _take_over(path, target, place=shutil.copyfile, name=source.path, field=field)
    name = source.path if isinstance(source, PathSource) else source.file
    if Path(name).suffix != ".gguf":
        raise InputError(field, f"{name} is not a model: a .gguf file or a directory with safetensors is needed")
    file = fetch_file(source, field=field, root=root, work=work)
    return convert_gguf(file, target, name=name, field=field, dtype=TYPES[source.dtype or "float32"])


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # the target is on another disk, or links are not allowed there
        shutil.copyfile(file, target)


def _take_over(directory: Path, target: Path, *, place: Callable[[Path, Path], Any], name: str, field: str) -> None:
    """Copies the files of a plain model directory (`model_files`) unchanged."""
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


def convert_gguf(file: Path, target: Path, *, name: str, field: str, dtype: torch.dtype = torch.float32) -> None:
    """Dequantizes a GGUF file and writes it, with its tokenizer, as a plain model directory.

    In bfloat16 every weight is rounded, and the model consists of the rounded weights: half of the bytes, and changes
    in the third digit, about as large as the error of the quantization.

    `file` is the whole model, or the first shard of a split model, with the other shards in the same directory.

    Raises:
        InputError: the file is damaged, lacks tensors, or is of an architecture or tokenizer that transformers does
            not know.
    """
    model, tokenizer = _read_gguf(file, name=name, field=field, dtype=dtype)
    tokenizer.model_max_length = model.config.max_position_embeddings  # a GGUF tokenizer knows no limit
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _read_gguf(file: Path, *, name: str, field: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The dequantized model and its tokenizer. On return the file is not mapped any more, which saves its size."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it prints what is refused below
    with TemporaryDirectory() as work, as_input_error(field, f"{name} cannot be read as a GGUF model"):
        headers, absent = shards(file, name=name, field=field)
        if len(headers) > 1 and not absent:
            file = Path(work) / "joined.gguf"
            write_joined(list(headers), file, field=field)
        shapes = {tensor: shape for header in headers.values() for tensor, shape in header.shapes.items()}
        # A reader holds the vocabulary as Python objects, half a gigabyte of a large one. transformers has one of its
        # own, so this one is not kept meanwhile.
        check_tensors(file, GGUFReader(file), shapes, absent=absent, name=name, field=field)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),  # without it the model cannot be saved
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused by the report
            output_loading_info=True,
        )
        model, report = loaded
        check_report(report, name=name, field=field)
        reader = GGUFReader(file)
        set_rope_factors(model.config, reader, name=name, field=field)
        tokenizer = gguf_tokenizer(file, reader, name=name, field=field)
    return model, tokenizer
