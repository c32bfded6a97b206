"""The studies by name, with their functions. Their questions are in tasks/evidence/studies.yaml."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.method.options import Search
from tasks.pipeline.runs import StudyRun
from tasks.studies import (
    adapting,
    bridging,
    calibrating,
    choosing,
    comparing,
    costs,
    crossing,
    generating,
    interacting,
    pruning,
    word_neurons,
)
from tasks.studies.context import Record, StudyContext
from tasks.studies.joint import EvaluateRecipes


def _single(context: StudyContext) -> list[str]:
    return ["all"]


def _records(values: list[dict[str, Any]], run: StudyRun, search: Search) -> list[Record]:
    return [Record(**value) for value in values]


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        compute: returns the records of a part, or other JSON objects; parts can be computed in any order.
        parts: returns the names of the parts.
        finish: returns the table from the values of all parts.
        evaluate: used instead of `finish`: returns the table from the values and the results of recipes on test rows.
        arrays: returns arrays that are stored with the table, by name.
        unit: the unit of `Record.value`.
        x: the label of the numeric axis, for studies whose records have an `x`.
    """

    compute: Callable[[StudyContext, str], list[Any]]
    parts: Callable[[StudyContext], list[str]] = _single
    finish: Callable[[list[dict[str, Any]], StudyRun, Search], list[Record]] = _records
    evaluate: Callable[[list[dict[str, Any]], EvaluateRecipes], list[Record]] | None = None
    arrays: Callable[[list[dict[str, Any]]], dict[str, np.ndarray]] | None = None
    unit: str = "accuracy"
    x: str = ""


def _over(
    merge: Callable[[list[Record]], list[Record]],
) -> Callable[[list[dict[str, Any]], StudyRun, Search], list[Record]]:
    """A `finish` that merges the records."""
    return lambda values, run, search: merge(_records(values, run, search))


def _single_part(compute: Callable[[StudyContext], list[Record]]) -> Callable[[StudyContext, str], list[Record]]:
    return lambda context, part: compute(context)


STUDIES = {
    "compare": Study(comparing.compute, comparing.parts, _over(comparing.over_seeds)),
    "fractions": Study(_single_part(pruning.fractions), x="fraction of the layer's neurons"),
    "seeds": Study(adapting.compute, adapting.parts, evaluate=adapting.evaluate_seeds),
    "selection": Study(adapting.compute, adapting.parts, evaluate=adapting.evaluate),
    "projections": Study(adapting.compute, adapting.parts, evaluate=adapting.evaluate),
    "attributions": Study(adapting.compute, adapting.parts, evaluate=adapting.evaluate),
    "layers": Study(_single_part(pruning.layers)),
    "transfer": Study(_single_part(pruning.transfer)),
    "timing": Study(_single_part(costs.timing), unit="seconds an example"),
    "cross_benchmark": Study(crossing.compute, crossing.parts),
    "generation": Study(generating.compute, generating.parts, unit="exact match"),
    "calibration": Study(calibrating.compute, calibrating.parts, _over(calibrating.paired)),
    "bridge": Study(bridging.compute, bridging.parts),
    "word_neurons": Study(word_neurons.compute, word_neurons.parts, unit="overlap of the neurons of a word"),
    "choice": Study(choosing.compute, choosing.parts, choosing.finish, arrays=choosing.arrays),
    "interactions": Study(interacting.compute, interacting.parts, unit="share of the scores"),
}
