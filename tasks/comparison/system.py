"""What a system is: it is fitted on examples, then the model answers rows inside a context, then it is as it was.

Every system answers the same rows with the same prompts through the same scoring (`tasks.benchmarks.scoring`).
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

# Answers to rows, of one model (C is 1).
Answer = Callable[[Sequence[Encoded]], Answers]


@dataclass(frozen=True)
class FitData:
    """What a system is fitted on.

    Attributes:
        loaded: the model, in eval mode, whose parameters take no gradient; a system leaves it bit for bit as it was.
        stack: the same model, for packed runs.
        examples: the adaptation set, with its labels.
        selection_rows: a system chooses its own settings (a layer, a strength) by the accuracy on these rows. They
            are the adaptation set or, with `protocol: published`, the test rows, as in the code published with SADI.
        seed: of everything that is drawn.
    """

    loaded: Loaded
    stack: DecoderStack
    examples: Rows
    selection_rows: Rows
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """A system after its fit.

    Attributes:
        applied: a context in which the model is steered or edited; gives what answers rows there.
        examples: how many rows it looked at.
        labels: of how many of these it used the label.
        settings: what was chosen or is fixed, a JSON value, for the reader of the table.
    """

    applied: Callable[[], AbstractContextManager[Answer]]
    examples: int
    labels: int
    settings: dict[str, Any] = field(default_factory=dict)


class System(Protocol):
    """Fits on the data; the model is unchanged when it returns.

    Raises:
        InputError: the model or the examples do not allow it.
    """

    def __call__(self, fit_data: FitData) -> Fitted: ...


@contextmanager
def unedited(stack: DecoderStack) -> Iterator[Answer]:
    """The context of a system that changes nothing, and of one that has changed the weights already."""
    yield partial(answers_unedited, stack)


def most_accurate(candidates: Iterable[Fitted], rows: Rows) -> Fitted:
    """The candidate with the highest accuracy on the rows, then the highest mean gold margin, then the first.

    Its settings tell the accuracy it was chosen by.
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
