"""Criteria that choose a (layer, fraction) pair from the grid on ten labeled rows and on unlabeled rows.

The paper's criterion is the accuracy on the ten rows. All others are computed from the same numbers: the
log-probabilities of the options, for the unpruned model and for every pair. A criterion gives a few columns of the
grid. The first column decides, and the next ones break ties (`tasks.method.recipe.choose`). docs/choice.md compares the
criteria.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import uniform_filter
from scipy.special import log_softmax, xlogy

from tasks.method.pairs import UNPRUNED
from tasks.method.recipe import ACCURACY, EXACT_MATCH

Floats = npt.NDArray[np.float64]

ROWS = 0.2  # how much more accurate a pair must be to be preferred to the unpruned model: two of ten rows
LOGPROB = 0.1  # nats, likewise
INFORMATION = 0.02  # nats, likewise
ROUNDING = 1e-9
DIGITS = 9  # to which keys are compared


def normalised(logprobs: npt.ArrayLike) -> Floats:
    """Log-probabilities of the options that sum to one over each row's options; -inf where a row has fewer options.

    Args:
        logprobs: [.., options].
    """
    normalised_logprobs: Floats = log_softmax(np.asarray(logprobs, dtype=np.float64), axis=-1)
    return normalised_logprobs


@dataclass(frozen=True)
class Seen:
    """The data that a criterion may use. Index 0 of the first axis is the unpruned model, the others are the pairs.

    Attributes:
        labeled: float64 [1 + layers * fractions, rows, options], normalised; pairs in the order of layers, then of
            fractions.
        gold: int64 [rows], the right option of each labeled row.
        unlabeled: float64 [1 + layers * fractions, other rows, options].
        fractions: how many fractions each layer has.
    """

    labeled: Floats
    gold: npt.NDArray[np.int64]
    unlabeled: Floats
    fractions: int

    @cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        """Which labeled rows are answered correctly, [models, rows]."""
        return right(self.labeled, self.gold)

    @cached_property
    def accuracy(self) -> Floats:
        return np.asarray(self.right.mean(1))

    @cached_property
    def margin(self) -> Floats:
        return np.asarray(margins(self.labeled, self.gold).mean(1))

    @cached_property
    def information(self) -> Floats:
        return mutual_information(self.unlabeled)


class Choice(NamedTuple):
    """The values of a criterion for each pair.

    Attributes:
        keys: columns of the grid, each float64 [pairs]; the largest value of the first one wins, ties go to the next
            one. `-fraction`: the smallest fraction wins. Remaining ties go to the smaller fraction, then to the lower
            layer.
        better: bool [pairs], whether the pair is so much better than the unpruned model that it is pruned.
    """

    keys: dict[str, Floats]
    better: npt.NDArray[np.bool_]


Rule = Callable[[Seen], Choice]


def right(logprobs: Floats, gold: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which rows have the right option as the most probable one, bool [models, rows]."""
    return np.asarray(logprobs.argmax(-1) == gold)


def margins(logprobs: Floats, gold: npt.NDArray[np.int64]) -> Floats:
    """Log-probability of the right option minus the largest other one, [models, rows]."""
    index = np.broadcast_to(gold[None, :, None], (*logprobs.shape[:2], 1))
    others = logprobs.copy()
    np.put_along_axis(others, index, -np.inf, axis=-1)
    gold_margins: Floats = np.take_along_axis(logprobs, index, axis=-1)[..., 0] - others.max(-1)
    return gold_margins


def mutual_information(logprobs: Floats) -> Floats:
    """Entropy of the mean answer minus the mean entropy of the answers, in nats, [models].

    Source: Sorensen et al. 2022 (arXiv 2203.11364), Eq. 3, who choose prompts by it. No label is used.

    Args:
        logprobs: normalised, [models, rows, options].
    """
    answers = np.exp(logprobs)
    mean = answers.mean(1)
    information: Floats = -xlogy(mean, mean).sum(-1) + xlogy(answers, answers).sum(-1).mean(1)
    return information


def prior_corrected(logprobs: Floats, unlabeled: Floats) -> Floats:
    """The log-probabilities after each model's mean answer to the unlabeled rows is divided out, normalised."""
    with np.errstate(divide="ignore", invalid="ignore"):
        prior = np.log(np.exp(unlabeled).mean(1))[:, None]
        corrected = np.where(np.isneginf(logprobs), -np.inf, logprobs - prior)
    return normalised(corrected)


def _paper(seen: Seen) -> Choice:
    return Choice({"accuracy": seen.accuracy[1:], "margin": seen.margin[1:]}, _more_accurate(seen.accuracy))


def _gold_logprob(seen: Seen) -> Choice:
    mean = np.take_along_axis(seen.labeled, seen.gold[None, :, None], axis=-1)[..., 0].mean(1)
    return Choice({"gold_logprob": mean[1:]}, mean[1:] >= mean[0] + LOGPROB)


def _smoothed(seen: Seen) -> Choice:
    keys = {
        "smoothed_accuracy": _over_neighbours(seen.accuracy[1:], seen.fractions),
        "smoothed_margin": _over_neighbours(seen.margin[1:], seen.fractions),
    }
    return Choice(keys, _more_accurate(seen.accuracy))


def _one_standard_error(seen: Seen) -> Choice:
    close = _close_to_best(seen)
    fraction = np.tile(np.arange(seen.fractions, dtype=np.float64), len(close) // seen.fractions)
    keys = {"within_one_error": close, "-fraction": -fraction}
    keys |= {"accuracy": seen.accuracy[1:], "margin": seen.margin[1:]}
    return Choice(keys, _more_accurate(seen.accuracy))


def _mutual_information(seen: Seen) -> Choice:
    return Choice({"information": seen.information[1:]}, seen.information[1:] >= seen.information[0] + INFORMATION)


def _information_and_labels(seen: Seen) -> Choice:
    keys = {"within_one_error": _close_to_best(seen), "information": seen.information[1:]}
    return Choice(keys | {"accuracy": seen.accuracy[1:]}, _more_accurate(seen.accuracy))


def _prior_corrected(seen: Seen) -> Choice:
    corrected = prior_corrected(seen.labeled, seen.unlabeled)
    accuracy = right(corrected, seen.gold).mean(1)
    keys = {"corrected_accuracy": accuracy[1:], "corrected_margin": margins(corrected, seen.gold).mean(1)[1:]}
    return Choice(keys, _more_accurate(accuracy))


def _halves(seen: Seen) -> Choice:
    middle = len(seen.gold) // 2
    halves = np.stack([seen.right[:, :middle].mean(1), seen.right[:, middle:].mean(1)])
    better = (halves[:, 1:] >= halves[:, :1] - ROUNDING).all(0) & _more_accurate(seen.accuracy)
    keys = {"worse_half": halves.min(0)[1:], "accuracy": seen.accuracy[1:], "margin": seen.margin[1:]}
    return Choice(keys, better)


CRITERIA: dict[str, Rule] = {
    "paper": _paper,
    "gold_logprob": _gold_logprob,
    "smoothed": _smoothed,
    "one_standard_error": _one_standard_error,
    "mutual_information": _mutual_information,
    "information_and_labels": _information_and_labels,
    "prior_corrected": _prior_corrected,
    "halves": _halves,
}


def choose_index(seen: Seen, criterion: str, *, abstain: bool = False) -> int:
    """The index of the chosen model: 0 is the unpruned one, 1 the first pair.

    Args:
        criterion: one of `CRITERIA`.
        abstain: whether the unpruned model is kept unless the chosen pair is better by the criterion's margin.

    Example:
        >>> seen = Seen(normalised(logprobs[:, :10]), gold[:10], normalised(logprobs), fractions=4)
        >>> choose_index(seen, "paper")
        17
    """
    keys, better = CRITERIA[criterion](seen)
    pairs = np.arange(len(better))
    order = np.lexsort(
        [pairs // seen.fractions, pairs % seen.fractions, *(-key.round(DIGITS) for key in reversed(keys.values()))]
    )
    best = int(order[0])
    return 0 if abstain and not better[best] else 1 + best


def ranked_by(
    criterion: str, grid: pd.DataFrame, unlabeled: pd.DataFrame | None, gold: Sequence[int] | None
) -> pd.DataFrame:
    """The grid with the columns of a criterion, and their names in `attrs["keys"]`, for `tasks.method.recipe.choose`.

    Args:
        criterion: as `search.criterion`.
        grid: for one of `CRITERIA` but the paper's with the column `logprobs`, which is left out of what is returned.
        unlabeled: the same pairs on unlabeled rows, for those that read some; by default `grid`.
        gold: index of the right option of each row of `grid`; None only for `mutual_information`.
    """
    if criterion in ("paper", "exact_match"):
        grid.attrs["keys"] = list(ACCURACY if criterion == "paper" else EXACT_MATCH)
        return grid
    labeled = _surface(grid)
    others = labeled if unlabeled is None else _surface(unlabeled)
    pairs = grid[grid.layer != UNPRUNED]
    known = np.zeros(labeled.shape[1], dtype=np.int64) if gold is None else np.array(gold, dtype=np.int64)
    seen = Seen(labeled, known, others, pairs.fraction.nunique())
    keys = CRITERIA[criterion](seen).keys
    ranked = grid.drop(columns="logprobs")
    for name, values in keys.items():
        if name not in ("accuracy", "margin", "-fraction"):
            ranked[name] = pd.Series(values.round(DIGITS), index=pairs.index)
    ranked.attrs["keys"] = list(keys)
    return ranked


def _surface(grid: pd.DataFrame) -> Floats:
    return normalised(np.stack(list(grid["logprobs"])))


def _more_accurate(accuracy: Floats) -> npt.NDArray[np.bool_]:
    better: npt.NDArray[np.bool_] = accuracy[1:] >= accuracy[0] + ROWS - ROUNDING
    return better


def _close_to_best(seen: Seen) -> Floats:
    """1 for a pair whose accuracy is at least the best one minus its standard error, else 0, [pairs]."""
    best = seen.accuracy[1:].max()
    close = seen.accuracy[1:] >= best - np.sqrt(best * (1 - best) / len(seen.gold)) - ROUNDING
    return np.asarray(close, dtype=np.float64)


def _over_neighbours(values: Floats, fractions: int) -> Floats:
    """The mean over each pair, its neighbouring layers and fractions: 3 x 3, cut at the edges."""
    surface = values.reshape(-1, fractions)
    total = uniform_filter(surface, 3, mode="constant")
    means: Floats = total / uniform_filter(np.ones_like(surface), 3, mode="constant")
    return means.ravel()
