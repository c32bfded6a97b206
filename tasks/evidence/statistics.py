"""Standard errors, paired tests, confidence intervals and rank correlations."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats


def standard_error(accuracy: float, n: int) -> float:
    """Binomial standard error sqrt(p (1 - p) / n) of the accuracy p on n rows.

    Raises:
        ValueError: no rows, or an accuracy outside [0, 1].
    """
    if n < 1 or not 0 <= accuracy <= 1:
        raise ValueError(f"an accuracy of {accuracy} on {n} rows has no standard error")
    return float(np.sqrt(accuracy * (1 - accuracy) / n))


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Compares two systems on the same rows; each array [n] is True where one system got the row right.

    Returns:
        `difference`: accuracy of the first minus that of the second.
        `stderr`: the standard error of that difference, from the n paired differences (each -1, 0 or 1).
        `interval`: [low, high], the 95 % confidence interval of that difference (`paired_interval`).
        `only_first`, `only_second`: rows that only one of the systems got right, b and c below.
        `p`: two-sided exact McNemar test: b out of b + c, against a fair coin; 1 if the systems never disagree.

    Source: McNemar 1947; the exact form is the sign test over the discordant pairs.

    Raises:
        ValueError: no rows, or not the same rows.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"two systems on the same rows are needed, not {first.shape} and {second.shape}")
    n = first.size
    b = int(np.sum(first & ~second))
    c = int(np.sum(~first & second))
    both = int(np.sum(first & second))
    return {
        "difference": (b - c) / n,
        "stderr": float(np.sqrt(b + c - (b - c) ** 2 / n) / n),
        "interval": list(paired_interval(both, b, c, n - both - b - c)),
        "only_first": b,
        "only_second": c,
        "p": float(stats.binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0,
    }


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """95 % confidence interval of the difference of two accuracies on the same rows.

    Args:
        both: rows that both systems got right.
        only_first, only_second: rows that only this system got right.
        neither: rows that both got wrong.

    Returns:
        Lower and upper end of the interval of the first accuracy minus the second.

    Source: Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10 ("square and add"): the Wilson intervals of
    both accuracies, combined with the correlation phi of the pairs. Unlike the normal interval, its width is not 0 if
    the systems never disagree, and it stays within -1 and 1.

    Raises:
        ValueError: no rows.
    """
    n = both + only_first + only_second + neither
    if n < 1:
        raise ValueError("a difference on no rows has no interval")
    first, second = both + only_first, both + only_second
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - n / 2, 0)  # Newcombe's correction for continuity
    variances = first * (n - first) * second * (n - second)
    phi = product / np.sqrt(variances) if variances else 0.0
    (low, high), (low_second, high_second) = (
        stats.binomtest(k, n).proportion_ci(method="wilson") for k in (first, second)
    )
    one, other = first / n, second / n

    def joined(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * phi * a * b + b * b, 0)))

    difference = (only_first - only_second) / n
    return difference - joined(one - low, high_second - other), difference + joined(high - one, other - low_second)


def holm(ps: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Adjusted p values of several tests, in their order. Holm's procedure at level alpha rejects those up to alpha.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.

    Args:
        ps: [tests].
    """
    p = np.asarray(ps, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1)
    result = np.empty_like(p)
    result[order] = adjusted
    return result


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[float, float]:
    """Spearman's rank correlation (ties get their mean rank) and its two-sided p.

    Both are NaN if one side is constant or there are fewer than three pairs. JSON has no NaN: write None.

    Raises:
        ValueError: the lists differ in length.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"two equally long lists are needed, not {x.shape} and {y.shape}")
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    result = stats.spearmanr(x, y)
    return float(result.statistic), float(result.pvalue)
