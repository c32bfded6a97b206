"""Comparison of pruning with other corrections of the option prior, to see if pruning does more than shift it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from tasks.evidence.statistics import mcnemar, standard_error

CALIBRATED = " + contextual calibration"
ORACLE = " + best threshold"  # uses the test labels


def system(predicted: np.ndarray, gold: np.ndarray, width: int) -> dict[str, Any]:
    """Accuracy with its standard error, and the number of predictions of each of `width` options."""
    accuracy = float((predicted == gold).mean())
    return {
        "accuracy": accuracy,
        "stderr": standard_error(accuracy, len(gold)),
        "predicted": np.bincount(predicted, minlength=width).tolist(),
    }


def best_threshold(margins: np.ndarray, gold: np.ndarray) -> float:
    """The most accurate threshold on these rows; a margin [n] above it means option 1.

    If several are equally accurate, it is the nearest to 0. It is chosen on the evaluated labels, so its accuracy is an
    upper bound for every correction of a constant prior.
    """
    values = np.unique(margins)
    candidates = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1], [0.0]])
    hits = np.array([((margins > threshold) == gold).mean() for threshold in candidates])
    best = candidates[hits == hits.max()]
    return float(best[np.abs(best).argmin()])


def area_under_roc(margins: np.ndarray, gold: np.ndarray) -> float | None:
    """Probability that a row of option 1 has a larger margin than one of option 0, ties counting half.

    It depends on neither threshold nor prior. None if all rows have the same gold option.
    """
    if len(set(gold.tolist())) < 2:
        return None
    return float(roc_auc_score(gold, margins))


def compare(
    base: Sequence[np.ndarray],
    pruned: Sequence[np.ndarray],
    priors: Sequence[np.ndarray] | None,
    gold: np.ndarray,
) -> dict[str, Any]:
    """Compares base and pruned model: unchanged, divided by the prior and, for two options, at the best threshold.

    Args:
        base, pruned: log-probabilities of each row's options, [options].
        priors: for each row, the log priors of both models, [2, options]; None if the prompt has no content-free form.
        gold: int64 [n].

    Returns:
        `systems` by name; `comparisons`, paired on the same rows; `area_under_roc` of both if there are two options.
    """
    width = max(map(len, base))
    predicted = {"base": _best(base), "pruned": _best(pruned)}
    if priors is not None:
        for number, (name, logprobs) in enumerate((("base", base), ("pruned", pruned))):
            predicted[name + CALIBRATED] = _best(
                [row - prior[number] for row, prior in zip(logprobs, priors, strict=True)]
            )
    binary: dict[str, Any] = {}
    if all(len(row) == 2 for row in base):
        margins = {name: _margins(logprobs) for name, logprobs in (("base", base), ("pruned", pruned))}
        thresholds = {name: best_threshold(values, gold) for name, values in margins.items()}
        predicted |= {name + ORACLE: (margins[name] > at).astype(np.int64) for name, at in thresholds.items()}
        binary = {
            "thresholds": thresholds,
            "area_under_roc": {name: area_under_roc(values, gold) for name, values in margins.items()},
        }
    pairs = [
        ("pruned", "base"),
        ("pruned", "base" + CALIBRATED),
        ("base" + CALIBRATED, "base"),
        ("pruned" + CALIBRATED, "base" + CALIBRATED),
        ("pruned" + ORACLE, "base" + ORACLE),
    ]
    return binary | {
        "systems": {
            name: system(values, gold, width) | {"uses_test_labels": name.endswith(ORACLE)}
            for name, values in predicted.items()
        },
        "comparisons": [
            {"first": first, "second": second} | mcnemar(predicted[first] == gold, predicted[second] == gold)
            for first, second in pairs
            if first in predicted and second in predicted
        ],
    }


def _best(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([int(row.argmax()) for row in logprobs], dtype=np.int64)


def _margins(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([float(row[1]) - float(row[0]) for row in logprobs])
