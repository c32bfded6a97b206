"""The studies by name and how each is computed. Their questions are in tasks/evidence/studies.yaml."""

from collections.abc import Callable
from dataclasses import dataclass

from tasks.studies import adapting, bridging, calibrating, comparing, costs, crossing, pruning
from tasks.studies.context import Record, StudyContext


def _single(context: StudyContext) -> list[str]:
    return ["all"]


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        compute: gives the records of a part; parts can be computed in any order.
        parts: gives the names of the parts.
        finish: makes the table of all records.
        unit: of `Record.value`.
        x: the label of the numeric axis, for studies whose records have an `x`.
    """

    compute: Callable[[StudyContext, str], list[Record]]
    parts: Callable[[StudyContext], list[str]] = _single
    finish: Callable[[list[Record]], list[Record]] = list
    unit: str = "accuracy"
    x: str = ""


def _single_part(compute: Callable[[StudyContext], list[Record]]) -> Callable[[StudyContext, str], list[Record]]:
    return lambda context, part: compute(context)


STUDIES = {
    "compare": Study(comparing.compute, comparing.parts, comparing.over_seeds),
    "fractions": Study(_single_part(pruning.fractions), x="fraction of the layer's neurons"),
    "seeds": Study(adapting.compute, adapting.parts, adapting.by_size),
    "selection": Study(adapting.compute, adapting.parts),
    "projections": Study(adapting.compute, adapting.parts),
    "attributions": Study(adapting.compute, adapting.parts),
    "layers": Study(_single_part(pruning.layers)),
    "transfer": Study(_single_part(pruning.transfer)),
    "timing": Study(_single_part(costs.timing), unit="seconds an example"),
    "cross_benchmark": Study(crossing.compute, crossing.parts),
    "generation": Study(_single_part(pruning.generation), unit="exact match"),
    "calibration": Study(calibrating.compute, calibrating.parts, calibrating.spreads),
    "bridge": Study(bridging.compute, bridging.parts),
}
