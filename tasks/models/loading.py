"""Load a model directory: safetensors only, memory-mapped, in the type it is stored in, no remote code."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from tasks.models.checks import as_input_error
from tasks.models.memory import free, keep_freed_memory
from tasks.models.stored import NARROW, keep_as_stored, layer_matrices
from tasks.models.structure import decoder_layers
from tasks.models.weights import weight_files
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json

MOST_OF_A_GPU = 0.8  # of its free memory, for weights; a larger model is copied there layer by layer


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


def load(directory: Path, *, wide: bool = False) -> Loaded:
    """The model and tokenizer in a Hugging Face directory. It computes in float32: see `tasks.models.stored`.

    The weights are memory-mapped: what is read of them is the system's file cache, not memory of the process. A write
    to a weight stays in this process.

    Args:
        wide: all weights in float32 and in memory, for code that does more than set weights to zero.

    Raises:
        InputError: the directory does not exist, has no safetensors weights or quantized ones, or cannot be loaded.
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
    with as_input_error("model", f"{directory} cannot be loaded"):
        if "quantization_config" in read_json(directory / "config.json"):
            raise InputError(
                "model", f"{directory} has quantized weights, whose rows cannot be zeroed; use the unquantized model"
            )
        model = _mapped(directory, weights)
        if model is None:
            model = _renamed(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    tokenizer.embedding_rows = model.get_input_embeddings().weight.shape[0]  # for `tasks.benchmarks.encoding`
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        if wide or parameter.dtype not in NARROW:
            parameter.data = parameter.data.float()
    _place(model, device(), whole=wide)
    return Loaded(model, tokenizer)


def _place(model: Any, where: torch.device, *, whole: bool) -> None:
    """Moves the model to a device; to a GPU without the matrices of its decoder layers if they do not fit.

    Args:
        whole: all weights must be on the device.

    Raises:
        InputError: the weights that must be on the device do not fit.
    """
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    there = free(where) if where.type == "cuda" else float("inf")
    if needed <= there * (1.0 if whole else MOST_OF_A_GPU):
        keep_as_stored(model)
        model.to(where)
        return
    matrices = [weight.numel() * weight.element_size() for weight in layer_matrices(model)]
    least = needed - sum(matrices) + sum(matrices) // max(1, len(decoder_layers(model)))
    if whole or least > there * MOST_OF_A_GPU:
        what = "weights" if whole else "embeddings and one layer"
        raise InputError(
            "DSM_DEVICE",
            f"{where} has {there / 1e9:.1f} GB left, but the {what} need {(needed if whole else least) / 1e9:.1f} GB; "
            "use cpu",
        )
    keep_as_stored(model, where)


def skeleton(directory: Path) -> Any:
    """The model in a directory without memory for its parameters, but with its buffers (rotary tables), in float32."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, trust_remote_code=False
        )


def _mapped(directory: Path, files: list[Path]) -> Any | None:
    """The model with the tensors of the files as its parameters; None if their names or shapes do not match."""
    model = skeleton(directory)
    tensors: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    wanted = model.state_dict()
    known = {torch.float32, torch.float64, *NARROW}
    if any(name not in wanted or wanted[name].shape != tensor.shape for name, tensor in tensors.items()):
        return None
    if any(tensor.is_floating_point() and tensor.dtype not in known for tensor in tensors.values()):
        return None
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return model


def _renamed(directory: Path) -> Any:
    """The model in float32 and in memory, loaded by transformers, which knows older names of tensors.

    Raises:
        InputError: weights are missing or have other shapes.
    """
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
    return model
