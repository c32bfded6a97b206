"""Data to fit systems on: a tiny model, six examples, ten test rows."""

import numpy as np
import pandas as pd
import torch

from tasks.benchmarks.table import Rows, encode_rows
from tasks.comparison.system import FitData
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = ["good", "fine", "dull", "bad", "long", "short", "warm", "cold"]


def table(count: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "id": [f"row-{i}" for i in range(count)],
            "prompt": [" ".join(rng.choice(WORDS, 3)) + f" {seed}{i} :" for i in range(count)],
            "options": [[" yes", " no !"]] * count,
            "gold": rng.integers(2, size=count),
        }
    )


def fit_data(family: str = "llama") -> tuple[FitData, Rows]:
    """Data to fit on, and rows on which no system is fitted."""
    loaded = Loaded(tiny_model(family, torch.float32), tiny_tokenizer())
    stack = DecoderStack(loaded.model)
    examples, test = (encode_rows(table(n, seed), loaded.tokenizer, stack.context) for n, seed in ((6, 0), (10, 1)))
    return FitData(loaded, stack, examples, examples), test


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    """Weights (bit for bit), names, hooks and gradients are as before."""
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
