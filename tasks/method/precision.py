"""The choice between float32 and bfloat16 for the pruned runs of a grid.

On hardware that is faster in bfloat16, it is made by comparing both on a sample of the grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tasks.method.grid import Part, Value, assemble
from tasks.method.recipe import choose
from tasks.models.loading import device
from tasks.models.products import Precision, multiplies_bfloat16

EVERY = 5  # the sample is every fifth layer of the first pack
AGREEMENT = 0.995  # minimum agreement of the sample's predictions

Run = Callable[[Sequence[Part]], Mapping[Part, Value]]


@dataclass(frozen=True)
class Settled:
    """The precision to use, and the comparison on the sample (None if float32 was requested or is faster).

    Attributes:
        predictions: the number of predictions of the sample.
        agreement: share of the predictions that are the same in both precisions.
        same_choice: whether the sample's chosen pair is the same in both; None if no pair is chosen.
    """

    precision: Precision
    predictions: int | None = None
    agreement: float | None = None
    same_choice: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON value, for the files that record how they were computed."""
        return asdict(self)


def settle(wanted: Precision, parts: Sequence[Part], run: Run, width: int) -> Settled:
    """bfloat16 if it was requested, keeps the sample's chosen pair and changes at most 0.5 % of its predictions.

    Args:
        parts: the whole work; the sample is every fifth layer of its first pack.
        run: computes parts.
    """
    if wanted == "float32" or not multiplies_bfloat16(device()):
        return Settled("float32")
    sample = [part for part in parts if part.pack == 0 and part.layer % EVERY == 0]
    low, high = (run([replace(part, precision=precision) for part in sample]) for precision in ("bfloat16", "float32"))
    rounded, exact = (np.concatenate([value["predicted"] for value in values.values()]) for values in (low, high))
    first, second = (choose(assemble(values, rounded.shape[1], width))[0] for values in (low, high))
    same_choice = bool((first["layer"], first["fraction"]) == (second["layer"], second["fraction"]))
    return _settled(rounded, exact, same_choice)


def settle_on_rows(wanted: Precision, predict: Callable[[Precision], np.ndarray]) -> Settled:
    """`settle` for runs without a choice of a pair: `predict` gives the predictions on a sample of rows."""
    if wanted == "float32" or not multiplies_bfloat16(device()):
        return Settled("float32")
    return _settled(predict("bfloat16"), predict("float32"), None)


def _settled(low: np.ndarray, high: np.ndarray, same_choice: bool | None) -> Settled:
    agreement = float((low == high).mean())
    fine = agreement >= AGREEMENT and same_choice is not False
    return Settled("bfloat16" if fine else "float32", low.size, agreement, same_choice)
