"""Calibration of a model's confidence (Guo et al. 2017, arXiv 1706.04599)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

BINS = 10
DRAWS = 1000
SEED = 0


def confidences(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    """The probability of each row's predicted option, by the softmax over its options: float64 [n]."""
    return np.array([float(softmax(row.astype(np.float64)).max()) for row in logprobs])


def _bins(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence: ((m - 1) / 10, m / 10] is bin m - 1, as in the paper."""
    bins: np.ndarray = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return bins


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """ECE, Guo et al. Eq. 5: mean over bins, weighted by rows, of |accuracy - mean confidence|; both arrays [n].

    It is biased upward if bins have few rows.
    """
    gaps = np.bincount(_bins(confidence), weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """`ece`, `bins` (n, accuracy and confidence of each; None if empty), and the confidence of wrong answers."""
    at, wrong = _bins(confidence), ~right
    bins = []
    for number in range(BINS):
        inside = at == number
        n = int(inside.sum())
        bins.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "n": n,
                "accuracy": float(right[inside].mean()) if n else None,
                "confidence": float(confidence[inside].mean()) if n else None,
            }
        )
    return {
        "n": len(right),
        "ece": expected_calibration_error(confidence, right),
        "bins": bins,
        "confidence": float(confidence.mean()),
        "wrong": int(wrong.sum()),
        "confidence_when_wrong": float(confidence[wrong].mean()) if wrong.any() else None,
    }


def difference(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], draws: int = DRAWS
) -> dict[str, Any]:
    """ECE of the first system minus that of the second, and its bootstrap standard error, from paired rows.

    Args:
        first, second: confidence and correctness, [n] each, on the same rows.
    """
    n = len(first[0])
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(draws):
        rows = rng.integers(n, size=n)
        a, b = (expected_calibration_error(confidence[rows], right[rows]) for confidence, right in (first, second))
        drawn.append(a - b)
    gap = expected_calibration_error(*first) - expected_calibration_error(*second)
    return {"difference": gap, "stderr": float(np.std(drawn, ddof=1)), "draws": draws, "seed": SEED}
