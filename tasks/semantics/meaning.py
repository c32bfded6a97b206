"""From activations at words to what neurons stand for: normalised scores, rankings both ways, polysemantic neurons.

The paper says "normalised", and no more; both normalisations and all thresholds are ours. Arrays are
[layers, words, width].
"""

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]

FACTOR = 2.0  # a neuron has a word whose share is above this many uniform shares
WORDS_NEEDED = 3  # from which a neuron is called polysemantic


def shares(a: np.ndarray) -> Scores:
    """s(n, w) = a(n, w) / sum over w' of a(n, w'): over the words it adds up to 1; 0 of a neuron that is silent."""
    total = a.sum(1, keepdims=True, dtype=np.float64)
    return np.asarray(np.divide(a, total, out=np.zeros(a.shape), where=total > 0))


def z_scores(a: np.ndarray) -> Scores:
    """The alternative: a(n, w) less the neuron's mean over the words, by its standard deviation; 0 where that is 0."""
    centred = a - a.mean(1, keepdims=True, dtype=np.float64)
    spread = np.broadcast_to(np.sqrt((centred**2).mean(1, keepdims=True)), a.shape)
    # A mean of equal numbers may miss them by a rounding, which is no spread.
    varies = np.broadcast_to(np.ptp(a, axis=1, keepdims=True) > 0, a.shape)
    return np.asarray(np.divide(centred, spread, out=np.zeros(a.shape), where=varies & (spread > 0)))


def words_of(scores: Scores, layer: int, neuron: int, count: int) -> list[int]:
    """The words that a neuron scores highest, best first; of equal ones, the first."""
    order: list[int] = np.argsort(-scores[layer, :, neuron], kind="stable")[:count].tolist()
    return order


def neurons_of(scores: Scores, word: int, count: int) -> list[tuple[int, int]]:
    """The neurons (layer, neuron) of all layers that score a word highest, best first; of equal ones, the first."""
    values = scores[:, word]
    order = np.argsort(-values, axis=None, kind="stable")[:count]
    return [(int(index) // values.shape[1], int(index) % values.shape[1]) for index in order]


def having(s: Scores, factor: float = FACTOR) -> npt.NDArray[np.bool_]:
    """Which neuron has which word: s(n, w) > factor / words, that many times the share of one that knows no word."""
    return np.asarray(s > factor / s.shape[1])


def polysemantic(s: Scores, needed: int = WORDS_NEEDED, factor: float = FACTOR) -> npt.NDArray[np.int64]:
    """How many neurons of each layer have at least `needed` words, int64 [layers]."""
    return np.asarray((having(s, factor).sum(1) >= needed).sum(1), dtype=np.int64)
