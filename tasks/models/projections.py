"""The names of the three projections of a gated MLP, without PyTorch: files and pages name them, too."""

from typing import Literal

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
Projection = Literal["gate_proj", "up_proj", "down_proj"]
