"""Step 3 of neuron semantic attribution (2503.01542): what pruning silences.

drop(n, w) = 1 - a_pruned(n, w) / a(n, w) on the same inputs: 1 of a neuron that fell silent, 0 of one that did not
change, negative of one that became louder. The paper speaks of activations that collapse to about zero; the threshold
is ours. Arrays are [layers, words, width].
"""

import numpy as np
import numpy.typing as npt

COLLAPSE = 0.9  # drop from which a neuron has collapsed at a word


def drops(before: np.ndarray, after: np.ndarray) -> npt.NDArray[np.float64]:
    """drop(n, w), float64; 0 where the unpruned neuron is silent already, so that there is nothing to lose."""
    ratio = np.divide(after, before, out=np.ones(before.shape), where=before > 0, dtype=np.float64)
    return np.asarray(1 - ratio, dtype=np.float64)


def mean_drop(drop: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean over neurons of the drop, cut at -1: [layers, words].

    A ratio has no bound above, and a neuron that was nearly silent before would outweigh all others.
    """
    return np.asarray(np.maximum(drop, -1).mean(2))


def collapsed(drop: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which neurons collapsed at which word."""
    return np.asarray(drop >= COLLAPSE)


def lost(gone: npt.NDArray[np.bool_], has: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Of the neurons of all layers that have a word, the share that collapsed at it, [words]; NaN if none has it."""
    own = has.sum((0, 2))
    return np.asarray(np.divide((gone & has).sum((0, 2)), own, out=np.full(own.shape, np.nan), where=own > 0))
