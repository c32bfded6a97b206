"""Correlations of a layer's activations with the gold label, the base model's margin and features of the text."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# English; the n't of "doesn't", and of the treebank's "does n't".
NEGATION = re.compile(
    r"\b(?:no|not|never|none|nobody|nothing|nowhere|neither|nor|cannot|without)\b|n['’]t\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Correlation:
    """The correlation of every neuron with one feature of n rows.

    Attributes:
        kind: `pearson` (the point-biserial coefficient, if the label has two values) or `eta` (the correlation ratio,
            without a sign, if the label has more).
        r, p, q: float64 [width]; p is two-sided, q is corrected over the neurons by Benjamini and Hochberg. None if
            the feature is constant.
    """

    kind: str
    n: int
    r: np.ndarray | None
    p: np.ndarray | None
    q: np.ndarray | None


def surface(text: str) -> dict[str, int]:
    """Counts of ASCII punctuation and of English negation words."""
    return {
        "punctuation": sum(character in string.punctuation for character in text),
        "negation": len(NEGATION.findall(text)),
    }


def option_margins(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    """The difference of the log-probabilities of two options of each row, float64 [n].

    With two options, it is the second minus the first. With more options, it is the most probable minus the next.
    """
    if all(len(row) == 2 for row in logprobs):
        return np.array([float(row[1]) - float(row[0]) for row in logprobs])
    return np.array([float(np.diff(np.sort(row.astype(np.float64))[-2:])[0]) for row in logprobs])


def with_feature(activations: np.ndarray, feature: np.ndarray) -> Correlation:
    """Pearson's correlation of each column of `activations` [n, width] with the feature [n]; p by Student's t."""
    n = len(feature)
    if n < 3 or np.ptp(feature) == 0:
        return Correlation("pearson", n, None, None, None)
    x, y = activations - activations.mean(0), feature - feature.mean()
    norms = np.sqrt((x**2).sum(0) * (y**2).sum())
    r = np.clip(np.divide(y @ x, norms, out=np.zeros(x.shape[1]), where=norms > 0), -1, 1)
    with np.errstate(divide="ignore"):  # for r = 1, t is infinite and p is 0
        t = np.abs(r) * np.sqrt((n - 2) / (1 - r**2))
    return _corrected("pearson", n, r, 2 * stats.t.sf(t, n - 2))


def with_label(activations: np.ndarray, gold: np.ndarray) -> Correlation:
    """Correlation with the gold option: point-biserial if there are two, else the correlation ratio.

    eta^2 is the share of a neuron's variance between the options; p is that of a one-way analysis of variance. With two
    options, eta^2 is the square of the point-biserial coefficient, and p is the same.
    """
    values = np.unique(gold)
    n, groups = len(gold), len(values)
    if gold.max(initial=0) <= 1 or groups < 2 or n <= groups:
        return with_feature(activations, gold.astype(np.float64))
    centred = activations - activations.mean(0)
    between = sum((gold == v).sum() * centred[gold == v].mean(0) ** 2 for v in values)
    total = (centred**2).sum(0)
    share = np.clip(np.divide(between, total, out=np.zeros_like(total), where=total > 0), 0, 1)
    with np.errstate(divide="ignore"):
        ratio = share / (1 - share) * (n - groups) / (groups - 1)
    return _corrected("eta", n, np.sqrt(share), stats.f.sf(ratio, groups - 1, n - groups))


def _corrected(kind: str, n: int, r: np.ndarray, p: np.ndarray) -> Correlation:
    return Correlation(kind, n, r, p, np.asarray(stats.false_discovery_control(p)))
