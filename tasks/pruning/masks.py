"""Which neurons are silenced."""

import numpy as np


def count(fraction: float, d_ff: int) -> int:
    """How many neurons a fraction of a layer is: floor(fraction * d_ff + 0.5); the paper does not say how it rounds."""
    return int(fraction * d_ff + 0.5)


def top_neurons(scores: np.ndarray, number: int) -> np.ndarray:
    """The `number` neurons with the highest signed score, best first, int64. Of equal ones, the lower index.

    Args:
        scores: [d_ff], one layer.
    """
    return np.argsort(-scores, kind="stable")[:number]


def random_neurons(d_ff: int, number: int, seed: int) -> np.ndarray:
    """The paper's random control: `number` neurons drawn without replacement, int64, ascending."""
    return np.sort(np.random.default_rng(seed).choice(d_ff, number, replace=False))
