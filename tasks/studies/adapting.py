"""Studies that adapt with other settings: seeds, selection, projections, attributions."""

from typing import Any

import numpy as np

from tasks.method.options import Adaptation, Attribution
from tasks.runtime.errors import InputError
from tasks.studies.context import Record, StudyContext

Variant = tuple[Adaptation, Attribution]


def variants(context: StudyContext) -> dict[str, Variant]:
    """The adaptations of a study by label, without the unpruned model."""
    adaptation, attribution = context.settings.adaptation, context.settings.attribution
    run = context.run
    if run.study == "seeds":
        return {
            f"{size} examples, seed {seed}": (with_changes(adaptation, size=size, seed=seed), attribution)
            for size in run.sizes
            for seed in range(run.seeds)
        }
    if run.study == "selection":
        kinds = {"random": "random examples", "correct": "correctly predicted", "wrong": "wrongly predicted"}
        return {label: (with_changes(adaptation, selection=kind), attribution) for kind, label in kinds.items()}
    if run.study == "projections":
        names = ("gate_proj", "up_proj", "down_proj")
        return {name: (adaptation, with_changes(attribution, projection=name)) for name in names}
    return {label: (adaptation, with_changes(attribution, **change)) for label, change in ATTRIBUTIONS.items()}


# All attributions except path `single`, whose forward pass per neuron would take days.
ATTRIBUTIONS: dict[str, dict[str, Any]] = {
    "integrated gradients, one layer (default)": {},
    "the paper's rule: right Riemann sum, 20 steps": {"quadrature": "riemann_right", "steps": 20},
    "all layers on one path": {"path": "all_layers"},
    "largest absolute score": {"ranking": "absolute"},
    "target: logit maximised anew": {"target": "max_logit_remaximised"},
    "target: largest option logit": {"target": "max_option_logit"},
    "target: option margin": {"target": "option_margin"},
    "gradient times activation": {"method": "gradient_x_activation"},
    "rectified gradients": {"method": "relu_gradient"},
    "saliency": {"method": "saliency"},
    "Shapley values, first order": {"method": "shapley", "steps": 20},
    "DeepLIFT's rescale rule in the MLP": {"method": "deeplift"},
    "mean activation": {"method": "activation"},
}


def with_changes(settings: Any, **change: Any) -> Any:
    """The settings with some fields changed and validated."""
    return type(settings).model_validate(settings.model_dump() | change)


def parts(context: StudyContext) -> list[str]:
    return ["unpruned", *variants(context)]


def compute(context: StudyContext, part: str) -> list[Record]:
    """One adaptation, evaluated on the test rows."""
    if part == "unpruned":
        return [context.base_record()]
    try:
        recipe, seconds = context.adapt(*variants(context)[part])
    except InputError as error:
        # Too few rows of a kind, or options that begin with the same token: the other variants are still computed.
        return [Record(part, None, more={"not possible": str(error)})]
    return [context.pruned_record(part, recipe, seconds)]


def by_size(records: list[Record]) -> list[Record]:
    """Adds the mean accuracy and standard deviation over the seeds of each size to the records of study `seeds`."""
    means = []
    for size in dict.fromkeys(record.label.split(" ")[0] for record in records if "seed" in record.label):
        values = [
            record.value
            for record in records
            if record.label.startswith(f"{size} examples, seed") and record.value is not None
        ]
        if len(values) > 1:
            label = f"{size} examples, mean of {len(values)} seeds"
            spread = round(float(np.std(values, ddof=1)), 4)
            means.append(Record(label, float(np.mean(values)), more={"deviation between seeds": spread}))
    return records + means
