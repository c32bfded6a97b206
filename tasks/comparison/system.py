"""The interface of a system. It is fitted on examples. Then the model answers rows in a context that restores it.

All systems answer the same rows with the same prompts and the same scoring (`tasks.benchmarks.scoring`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.scoring import Answers, answers_unedited
from tasks.benchmarks.table import Rows
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack

# Answers of one model to rows (C is 1).
Answer = Callable[[Sequence[Encoded]], Answers]


@dataclass(frozen=True)
class FitData:
    """The data that a system is fitted on.

    Attributes:
        loaded: the model, in eval mode, without gradients; a system leaves it bit for bit unchanged.
        stack: the same model, for packed runs.
        examples: the adaptation set, with its labels.
        selection_rows: a system chooses its own settings (a layer, a strength) by the accuracy on these rows. They
            are the adaptation set or, with `protocol: published`, the test rows, as in the code published with SADI.
        seed: of all random draws.
        unlabeled: train rows without their labels, for a search whose criterion reads some.
    """

    loaded: Loaded
    stack: DecoderStack
    examples: Rows
    selection_rows: Rows
    seed: int = 0
    unlabeled: Rows | None = None


@dataclass(frozen=True)
class Fitted:
    """A system after its fit.

    Attributes:
        applied: returns a context in which the model is steered or edited. Its value is a function that answers rows.
        examples: the number of rows that it used.
        labels: the number of labels that it used.
        settings: chosen and fixed settings for the table, a JSON value.
    """

    applied: Callable[[], AbstractContextManager[Answer]]
    examples: int
    labels: int
    settings: dict[str, Any] = field(default_factory=dict)


class System(Protocol):
    """Fits on the data; the model is unchanged when it returns.

    Raises:
        InputError: the system cannot be fitted on this model or these examples.
    """

    def __call__(self, fit_data: FitData) -> Fitted: ...


@contextmanager
def unedited(stack: DecoderStack) -> Iterator[Answer]:
    """A context that changes nothing, also for a system that has already changed the weights."""
    yield partial(answers_unedited, stack)


def most_accurate(candidates: Iterable[Fitted], rows: Rows) -> Fitted:
    """The candidate with the highest accuracy on the rows, then the highest mean gold margin, then the first.

    The accuracy is added to its settings.
    """
    best: tuple[tuple[float, float], Fitted] | None = None
    for candidate in candidates:
        with candidate.applied() as answer:
            answers = answer(rows.encoded)
        accuracy = float(np.mean(answers.predicted()[0] == np.array(rows.gold)))
        rank = accuracy, float(answers.margins(rows.gold)[0].mean())
        if best is None or rank > best[0]:
            best = rank, candidate
    if best is None:
        raise ValueError("no candidate")
    (accuracy, _), chosen = best
    return Fitted(chosen.applied, chosen.examples, chosen.labels, chosen.settings | {"accuracy when chosen": accuracy})
