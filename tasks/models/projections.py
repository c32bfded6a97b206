"""The names of the projections of an MLP. This module does not import PyTorch, since files and pages also use them.

In an MLP without a gate `gate_proj` is the first linear layer, and there is no `up_proj` (`tasks.models.mlp`).
"""

from collections.abc import Callable
from typing import Any, Literal

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
Projection = Literal["gate_proj", "up_proj", "down_proj"]

WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")  # names of d_ff in config.json; null means 4 d_model


def first_width(get: Callable[[str], Any]) -> int | None:
    """d_ff in a model's configuration, or None; `get` gives the configuration's values by name, None if absent."""
    return next((width for name in WIDTHS if (width := get(name))), None)


def expert_width(get: Callable[[str], Any]) -> tuple[int, int] | None:
    """The number of experts to which a token is routed, and of neurons in each; None without experts."""
    number, width = get("num_experts_per_tok"), get("moe_intermediate_size") or first_width(get)
    return (number, width) if number and width else None
