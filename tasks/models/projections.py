"""The names of the projections of an MLP, without PyTorch: files and pages name them, too.

In an MLP without a gate `gate_proj` is the first linear layer, and there is no `up_proj` (`tasks.models.mlp`).
"""

from collections.abc import Callable
from typing import Any, Literal

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
Projection = Literal["gate_proj", "up_proj", "down_proj"]

WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")  # what d_ff is called in config.json; 4 d_model if it is null


def first_width(get: Callable[[str], Any]) -> int | None:
    """d_ff as a model's configuration has it, None if it has none; `get` gives its values by name, None if absent."""
    return next((width for name in WIDTHS if (width := get(name))), None)


def expert_width(get: Callable[[str], Any]) -> tuple[int, int] | None:
    """How many experts a token is given to, and how many neurons each has; None without experts."""
    number, width = get("num_experts_per_tok"), get("moe_intermediate_size") or first_width(get)
    return (number, width) if number and width else None
