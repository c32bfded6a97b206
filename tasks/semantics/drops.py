"""Step 3 of neuron semantic attribution (2503.01542): the drop of activations by pruning.

drop(n, w) = 1 - a_pruned(n, w) / a(n, w) on the same inputs: 1 for a neuron that became silent, 0 for no change,
negative for an increase. The paper describes activations that collapse to about zero; the threshold is ours.
Arrays are [layers, words, width].
"""

import numpy as np
import numpy.typing as npt

COLLAPSE = 0.9  # a neuron with at least this drop has collapsed at a word


def drops(before: np.ndarray, after: np.ndarray) -> npt.NDArray[np.float64]:
    """drop(n, w), float64; 0 where the unpruned neuron is already silent."""
    ratio = np.divide(after, before, out=np.ones(before.shape), where=before > 0, dtype=np.float64)
    return np.asarray(1 - ratio, dtype=np.float64)


def mean_drop(drop: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean over neurons of the drop, clipped below at -1: [layers, words].

    Without clipping, a neuron that was nearly silent could outweigh all others.
    """
    return np.asarray(np.maximum(drop, -1).mean(2))


def collapsed(drop: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether each neuron collapsed at each word."""
    return np.asarray(drop >= COLLAPSE)


def lost(gone: npt.NDArray[np.bool_], has: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The share, over all layers, of a word's neurons that collapsed at it, [words]; NaN if no neuron has the word."""
    own = has.sum((0, 2))
    return np.asarray(np.divide((gone & has).sum((0, 2)), own, out=np.full(own.shape, np.nan), where=own > 0))
