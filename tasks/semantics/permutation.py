"""Reliability of the findings: tests against random words of the same frequency, and agreement between data sets."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from tasks.semantics.activations import WordActivations

PERMUTATIONS = 9999


def frequency_strata(counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The stratum of each word by its occurrences: 0 for 1, 1 for 2 or 3, 2 for 4 to 7, and so on."""
    return np.asarray(np.floor(np.log2(np.asarray(counts))), dtype=np.int64)


def permutation_test(
    values: npt.NDArray[np.float64],
    chosen: npt.NDArray[np.bool_],
    strata: npt.NDArray[np.int64],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Tests whether the mean value of the chosen words is larger than that of random words.

    Each permutation draws from every stratum, without replacement, as many words as are chosen there. So the drawn set
    has the same size and frequencies. One-sided p = (1 + number of sets with at least the chosen words' mean) /
    (1 + permutations) (Phipson and Smyth 2010).

    Args:
        values: [words].
        chosen: [words].
        strata: [words].

    Returns:
        `mean` of the chosen words; `random`, the mean of the random sets; `p`; `permutations`; `seed`; `chosen` and
        `words`, their numbers; `exchangeable`, the number of chosen words whose stratum has other words. If it is 0,
        all sets are the same and p is 1.

    Raises:
        ValueError: no word is chosen, or the shapes differ.
    """
    if not chosen.any() or not values.shape == chosen.shape == strata.shape:
        raise ValueError("values, choice and stratum of each word are needed, and at least one that is chosen")
    rng = np.random.default_rng(seed)
    sums = np.zeros(permutations)
    exchangeable = 0
    for stratum in np.unique(strata[chosen]):
        inside = strata == stratum
        number = int(chosen[inside].sum())
        exchangeable += number if number < inside.sum() else 0
        drawn = rng.random((permutations, int(inside.sum()))).argsort(1)[:, :number]
        sums += values[inside][drawn].sum(1)
    means, mean = sums / chosen.sum(), float(values[chosen].mean())
    slack = 1e-12 * max(1.0, abs(mean))  # rounding: the order of a sum differs
    return {
        "mean": mean,
        "random": float(means.mean()),
        "p": (1 + int((means >= mean - slack).sum())) / (1 + permutations),
        "permutations": permutations,
        "seed": seed,
        "chosen": int(chosen.sum()),
        "words": len(values),
        "exchangeable": exchangeable,
    }


def matching_test(
    similarity: npt.NDArray[np.float64],
    strata: npt.NDArray[np.int64],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Tests whether the words of one data set are more similar to themselves in another than to other words there.

    Each permutation permutes the words within their strata. One-sided p as in `permutation_test`, for the mean over the
    words of their similarity to the assigned word.

    Args:
        similarity: the similarity of word i in one data set and word j in the other, [words, words].
        strata: [words].

    Returns:
        `mean` of each word with itself; `random`, the expected mean of a permutation; `p`; `permutations`; `seed`;
        `words`; `exchangeable`, the number of words whose stratum has other words. If it is 0, p is 1.

    Raises:
        ValueError: there are no words, or the shapes differ.
    """
    words = len(strata)
    if not words or similarity.shape != (words, words):
        raise ValueError("the similarity of each pair of words and the stratum of each word are needed")
    rng = np.random.default_rng(seed)
    sums, expected, exchangeable = np.zeros(permutations), 0.0, 0
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        own = similarity[np.ix_(inside, inside)]
        assigned = rng.random((permutations, len(inside))).argsort(1)
        sums += own[np.arange(len(inside)), assigned].sum(1)
        expected += float(own.sum() / len(inside))
        exchangeable += len(inside) if len(inside) > 1 else 0
    mean = float(similarity.trace() / words)
    slack = 1e-12 * max(1.0, abs(mean))
    return {
        "mean": mean,
        "random": expected / words,
        "p": (1 + int((sums / words >= mean - slack).sum())) / (1 + permutations),
        "permutations": permutations,
        "seed": seed,
        "words": words,
        "exchangeable": exchangeable,
    }


def halves(n: int, seed: int) -> tuple[list[int], list[int]]:
    """The indices of n rows in two random halves, each ascending; the second half may have one more."""
    order = np.random.default_rng(seed).permutation(n)
    return sorted(order[: n // 2].tolist()), sorted(order[n // 2 :].tolist())


def agreement(first: WordActivations, second: WordActivations) -> tuple[float, int]:
    """Rank correlation (Spearman) of s(n, w) over the words that occur in both, mean over the neurons of all layers.

    For one neuron, s is a divided by a constant, so both have the same ranks. A neuron with equal values for all words
    is left out.

    Returns:
        The mean (NaN with fewer than three common words or without neurons), and the number of common words.
    """
    common = (first.counts > 0) & (second.counts > 0)
    if common.sum() < 3:
        return float("nan"), int(common.sum())
    sums, neurons = 0.0, 0
    for one, other in zip(first.mean, second.mean, strict=True):
        x, y = (rankdata(a[common], axis=0) - (common.sum() + 1) / 2 for a in (one, other))
        norms = np.sqrt((x**2).sum(0) * (y**2).sum(0))
        varies = norms > 0
        sums += float(((x * y).sum(0)[varies] / norms[varies]).sum())
        neurons += int(varies.sum())
    return (sums / neurons if neurons else float("nan")), int(common.sum())
