"""Models whose layers are placed by accelerate's hooks, as with a device map; only a CPU is used here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from tasks.models.stack import DecoderStack
from tasks.models.sweep import logits_without
from tasks.runtime.errors import InputError
from tests.tiny import FAMILIES, tiny_model

SETS = [np.arange(4), np.arange(20)]


def everything(model: Any) -> list[torch.Tensor]:
    """The results of runs from every layer, and their gradients."""
    stack = DecoderStack(model)
    [packed] = stack.pack([[([5, 6, 7, 8, 9], [4])], [([5, 6, 7, 1, 2, 3], [4, 5])]])
    residuals = stack.clean(packed)
    found = [residuals.logits]
    for layer in range(len(stack)):
        found += logits_without(stack, residuals, layer, SETS)
        scale = torch.full((2, stack.d_ff), 0.5, requires_grad=True)
        logits = stack.scaled(residuals, layer, scale)
        found += [logits.detach(), *torch.autograd.grad(logits.max(), scale)]
    return found


def places(model: Any, middle: str) -> dict[str, str]:
    modules = ["embed_tokens", "norm", "rotary_emb", *(f"layers.{i}" for i in range(len(model.model.layers)))]
    return {f"model.{name}": "cpu" for name in modules} | {"model.layers.1": middle, "lm_head": "cpu"}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_held_by_hooks_give_the_same_bits(family: str) -> None:
    plain, held = (tiny_model(family, torch.float32) for _ in range(2))
    dispatch_model(held, places(held, "cpu"), main_device="cpu", force_hooks=True)
    assert all(hasattr(layer, "_hf_hook") for layer in held.model.layers)
    for first, second in zip(everything(plain), everything(held), strict=True):
        assert first.numpy().tobytes() == second.numpy().tobytes()


def test_offloaded_weights_are_refused(tmp_path: Path) -> None:
    on_disk = tiny_model("llama", torch.float32)
    dispatch_model(on_disk, places(on_disk, "disk"), main_device="cpu", offload_dir=tmp_path)
    for model in (on_disk, cpu_offload(tiny_model("llama", torch.float32), torch.device("cpu"))):
        with pytest.raises(InputError, match="model: LlamaForCausalLM: some weights are offloaded"):
            DecoderStack(model)
