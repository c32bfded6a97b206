"""Load a model directory: safetensors only, float32, no remote code."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tasks.models.checks import one_line
from tasks.models.memory import keep_freed_memory
from tasks.models.weights import weight_files
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode whose parameters take no gradient, and its tokenizer."""

    model: Any
    tokenizer: Any


def device() -> torch.device:
    """Where models run: DSM_DEVICE if set, else a GPU if there is one, else the CPU."""
    name = os.environ.get("DSM_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError("DSM_DEVICE", f"{name!r} cannot be used: {str(error).splitlines()[0]}") from None


def load(directory: Path) -> Loaded:
    """The model and tokenizer in a Hugging Face directory, in float32.

    Scores need float32: bfloat16 changes the ranking of the neurons.

    Raises:
        InputError: the directory is not there, has no safetensors weights, or quantized ones, or cannot be loaded.
    """
    weights = weight_files(directory)
    if not (directory / "config.json").is_file():
        raise InputError("model", f"{directory} is not a model directory: it has no config.json")
    if not weights:
        raise InputError(
            "model", f"{directory} has no model.safetensors and no index of shards; no other format is read"
        )
    keep_freed_memory()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it prints a table of what is refused below
    with one_line("model", f"{directory} cannot be loaded"):
        if "quantization_config" in read_json(directory / "config.json"):
            raise InputError(
                "model", f"{directory} has quantized weights, whose rows cannot be zeroed; use the full ones"
            )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # else it raises a table of them; they are refused below
            output_loading_info=True,
        )
        model, report = loaded
        for problem in ("missing_keys", "mismatched_keys"):  # transformers would start these weights at random
            if report[problem]:
                raise InputError("model", f"{directory}: {problem} in its safetensors: {sorted(report[problem])[:3]}")
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    tokenizer.embedding_rows = model.get_input_embeddings().weight.shape[0]  # for `tasks.benchmarks.encoding`
    model.eval().requires_grad_(False).to(device())
    return Loaded(model, tokenizer)
