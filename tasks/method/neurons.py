"""The neurons of a fraction of a layer."""

import numpy as np


def count(fraction: float, width: int) -> int:
    """The number of neurons in a fraction of `width`: floor(fraction * width + 0.5).

    The paper does not specify the rounding.
    """
    return int(fraction * width + 0.5)


def top_neurons(scores: np.ndarray, number: int) -> np.ndarray:
    """The `number` neurons with the highest scores, best first, int64. Equal scores are ordered by index.

    Args:
        scores: [width], one layer's `Scores.ranked`.
    """
    return np.argsort(-scores, kind="stable")[:number]


def prominent_neurons(scores: np.ndarray, fraction: float) -> np.ndarray:
    """The neurons that a (layer, fraction) pair silences: the highest-scoring `fraction` of a layer, int64, ascending.

    Args:
        scores: [width], one layer's `Scores.ranked`.
    """
    return np.sort(top_neurons(scores, count(fraction, len(scores))))


def random_neurons(width: int, number: int, seed: int) -> np.ndarray:
    """The paper's random control: `number` neurons drawn without replacement, int64, ascending."""
    return np.sort(np.random.default_rng(seed).choice(width, number, replace=False))
