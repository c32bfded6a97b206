"""Normalised scores of neurons at words, rankings of words and neurons, polysemantic neurons.

The paper says only "normalised"; both normalisations and all thresholds are ours. Arrays are
[layers, words, width].
"""

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]

FACTOR = 2.0  # a neuron has a word if its share is above this multiple of the uniform share
WORDS_NEEDED = 3  # minimum number of words of a polysemantic neuron


def shares(a: np.ndarray) -> Scores:
    """s(n, w) = a(n, w) / sum over w' of a(n, w'). The sum over the words is 1, or 0 for a silent neuron."""
    total = a.sum(1, keepdims=True, dtype=np.float64)
    return np.asarray(np.divide(a, total, out=np.zeros(a.shape), where=total > 0))


def z_scores(a: np.ndarray) -> Scores:
    """a(n, w) minus the neuron's mean over the words, divided by the standard deviation if that is not 0."""
    centred = a - a.mean(1, keepdims=True, dtype=np.float64)
    spread = np.broadcast_to(np.sqrt((centred**2).mean(1, keepdims=True)), a.shape)
    # The mean of equal numbers may have a rounding error.
    varies = np.broadcast_to(np.ptp(a, axis=1, keepdims=True) > 0, a.shape)
    return np.asarray(np.divide(centred, spread, out=np.zeros(a.shape), where=varies & (spread > 0)))


def words_of(scores: Scores, layer: int, neuron: int, count: int) -> list[int]:
    """The indices of the words with the highest scores of a neuron; ties keep their order."""
    order: list[int] = np.argsort(-scores[layer, :, neuron], kind="stable")[:count].tolist()
    return order


def neurons_of(scores: Scores, word: int, count: int) -> list[tuple[int, int]]:
    """The neurons (layer, neuron) with the highest scores of a word; ties keep their order."""
    values = scores[:, word]
    order = np.argsort(-values, axis=None, kind="stable")[:count]
    return [(int(index) // values.shape[1], int(index) % values.shape[1]) for index in order]


def having(s: Scores, factor: float = FACTOR) -> npt.NDArray[np.bool_]:
    """Whether each neuron has each word: s(n, w) > factor / words, a multiple of the uniform share."""
    return np.asarray(s > factor / s.shape[1])


def polysemantic(s: Scores, needed: int = WORDS_NEEDED, factor: float = FACTOR) -> npt.NDArray[np.int64]:
    """The number of neurons of each layer with at least `needed` words, int64 [layers]."""
    return np.asarray((having(s, factor).sum(1) >= needed).sum(1), dtype=np.int64)
