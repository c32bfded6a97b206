"""The names of the projections of an MLP, without PyTorch: files and pages name them, too.

In an MLP without a gate `gate_proj` is the first linear layer, and there is no `up_proj` (`tasks.models.mlp`).
"""

from typing import Literal

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
Projection = Literal["gate_proj", "up_proj", "down_proj"]

WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")  # what d_ff is called in config.json; 4 d_model if it is null
