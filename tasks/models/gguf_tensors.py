"""Checks that a GGUF file has exactly the tensors of the model that its fields describe, in the right shapes.

transformers initialises tensors that a file lacks at random, and ignores tensors that it does not know.
"""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tasks.models.checks import listed
from tasks.runtime.errors import InputError

Shapes = dict[str, tuple[int, ...]]

ROPE_FACTORS = "rope_freqs.weight"
# Tables of rotary angles that old converters wrote, and that llama.cpp does not read either.
UNUSED = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")
# How the rotary angles of Llama 3.1 and later are stretched; `factor` is the largest factor in the file.
LLAMA3_ROPE = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def check_tensors(file: Path, reader: GGUFReader, shapes: Shapes, *, absent: list[str], name: str, field: str) -> None:
    """Refuses a file whose tensors are not those of the model, before any of them is read.

    Args:
        file: the GGUF file, or the first shard of an incomplete split.
        reader: of that file.
        shapes: the shapes of all tensors in the file, or in the shards.
        absent: the missing shards.
        name: what the user calls the file.

    Raises:
        InputError: tensors are missing, superfluous or have another shape; the message names them.
    """
    wanted = _wanted(file, reader)
    missing, other = [], []
    if wanted is not None:
        given = {wanted[tensor][0] for tensor in shapes if tensor in wanted}
        missing = [tensor for tensor, (parameter, _) in wanted.items() if parameter not in given]
        other = [tensor for tensor in shapes if tensor not in wanted and not _is_known(tensor)]
    if absent or missing or other:
        parts = [
            f"{name} lacks the tensors {listed(missing)}" if missing else "",
            f"{listed(absent)} must be beside {name}" if absent else "",
            f"{name} has tensors that have no place in the model: {listed(other)}" if other else "",
        ]
        raise InputError(field, "; ".join(filter(None, parts)))
    for tensor, (_, size) in (wanted or {}).items():
        if size is not None and tensor in shapes and math.prod(shapes[tensor]) != math.prod(size):
            raise InputError(field, f"{name}: {tensor} has the shape {shapes[tensor]}, where {size} is needed")


def _wanted(file: Path, reader: GGUFReader) -> dict[str, tuple[str, tuple[int, ...] | None]] | None:
    """By the name of each tensor, the parameter that it becomes, and its shape if it is the whole parameter.

    None if transformers does not skip unknown tensors: then they are in its own report.
    """
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    architecture = str(reader.fields["general.architecture"].contents())
    if is_gguf_arch_supported(architecture):
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})  # type: ignore[no-untyped-call]
    names = get_gguf_hf_weights_map(model, processor)
    if config.tie_word_embeddings:
        names.pop("output.weight", None)
    sizes = {parameter: tuple(tensor.shape) for parameter, tensor in model.state_dict().items()}
    sources = Counter(names.values())
    return {
        tensor: (parameter, sizes.get(parameter) if sources[parameter] == 1 else None)
        for tensor, parameter in names.items()
    }


def _is_known(tensor: str) -> bool:
    return tensor == ROPE_FACTORS or UNUSED.fullmatch(tensor) is not None


def check_report(report: dict[str, Any], *, name: str, field: str) -> None:
    """Refuses a model if transformers reports that it left out weights or initialised some at random.

    Raises:
        InputError: there are such parameters; the message names them.
    """
    for problem, message in (
        ("missing_keys", "lacks the weights"),
        ("mismatched_keys", "has weights of the wrong shape"),
        ("unexpected_keys", "has weights that have no place in the model"),
    ):
        if report[problem]:
            raise InputError(field, f"{name} {message}: {listed(sorted(map(str, report[problem])))}")


def set_rope_factors(config: Any, reader: GGUFReader, *, name: str, field: str) -> None:
    """Copies the factors of the rotary angles from the file into `config`; transformers ignores them.

    Raises:
        InputError: the factors are not those of a Llama 3.1.
    """
    tensor = next((tensor for tensor in reader.tensors if tensor.name == ROPE_FACTORS), None)
    if tensor is None:
        return
    factors = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    if bool((factors == 1).all()):
        return
    plain = config.rope_parameters
    if plain and plain.get("rope_type") == "default":
        angles, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        config.rope_parameters = LLAMA3_ROPE | {"factor": float(factors.max()), "rope_theta": plain["rope_theta"]}
        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        if factors.shape == angles.shape and torch.allclose(stretched * factors, angles, rtol=1e-4, atol=0):
            return
    raise InputError(
        field,
        f"{name} scales its rotary angles by factors that are not those of Llama 3.1 ({ROPE_FACTORS}), which is not "
        "supported; use the model's safetensors directory",
    )
