"""Which neurons are silenced."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from tasks.models.stack import Projection


@dataclass(frozen=True)
class Ranking:
    """What neurons are ordered by, highest first.

    Attributes:
        values: float32 [layers, width].
        projection: the one whose rows the neurons are.
        header: of the scores' file.
    """

    values: np.ndarray
    projection: Projection
    header: dict[str, Any]


def read_ranking(path: Path) -> Ranking:
    """The ranking in the file of the `score` step: its scores, or their sizes where the header's `ranking` says so.

    The one place that knows of `attribution.ranking`: search, prune and transfer all order neurons by this.
    """
    with safe_open(path, framework="numpy") as file:
        values: np.ndarray = file.get_tensor("scores")
        header: dict[str, Any] = json.loads(file.metadata()["header"])
    return Ranking(np.abs(values) if header["ranking"] == "absolute" else values, header["projection"], header)


def count(fraction: float, width: int) -> int:
    """How many neurons a part of `width` is: floor(fraction * width + 0.5); the paper does not say how it rounds."""
    return int(fraction * width + 0.5)


def top_neurons(scores: np.ndarray, number: int) -> np.ndarray:
    """The `number` neurons that rank highest, best first, int64. Of equal ones, the lower index.

    Args:
        scores: [width], one layer of a ranking.
    """
    return np.argsort(-scores, kind="stable")[:number]


def random_neurons(width: int, number: int, seed: int) -> np.ndarray:
    """The paper's random control: `number` neurons drawn without replacement, int64, ascending."""
    return np.sort(np.random.default_rng(seed).choice(width, number, replace=False))
