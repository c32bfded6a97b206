"""Studies that adapt with other settings: seeds, selection, projections, attributions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.evidence.statistics import holm, mcnemar
from tasks.method.options import Adaptation, Attribution
from tasks.method.recipe import Recipe
from tasks.runtime.errors import InputError
from tasks.studies.context import Record, StudyContext, accuracy_record, pair_columns
from tasks.studies.joint import EvaluateRecipes

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


LEVEL = 0.05  # of the exact McNemar tests of the draws of one size, Holm-corrected

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
    return list(variants(context))


def compute(context: StudyContext, part: str) -> list[dict[str, Any]]:
    """The recipe of one variant and the seconds that it took; or why it is not possible on this benchmark."""
    try:
        recipe, seconds = context.adapt(*variants(context)[part])
    except InputError as error:
        # Too few rows of a kind, or options that begin with the same token: the other variants are still computed.
        return [{"label": part, "not possible": str(error)}]
    return [{"label": part, "recipe": recipe.model_dump(mode="json"), "seconds": seconds}]


def evaluate(values: Sequence[dict[str, Any]], test_rows: EvaluateRecipes) -> list[Record]:
    """The unpruned model and every variant on the test rows, each with a random control of its layer and size."""
    recipes = {value["label"]: Recipe.model_validate(value["recipe"]) for value in values if "recipe" in value}
    results = dict(zip(recipes, test_rows(list(recipes.values())), strict=True))
    records = []
    for value in values:
        label = value["label"]
        if label not in results:
            records.append(Record(label, None, more={"not possible": value["not possible"]}))
            continue
        result, recipe = results[label], recipes[label]
        test = mcnemar(result.pruned, result.base)
        more = pair_columns(recipe, value["seconds"]) | {
            "gained": test["only_first"],
            "lost": test["only_second"],
            "exact match": round(float(result.pruned_exact.mean()), 4),
            "random": round(float(result.random.mean()), 4),
            "on the examples": f"{recipe.adaptation.base_accuracy:.2f} to {recipe.adaptation.accuracy:.2f}",
        }
        records.append(accuracy_record(label, result.pruned, result.base, **more))
    if results:
        first = next(iter(results.values()))
        exact = {"exact match": round(float(first.base_exact.mean()), 4)}
        records.insert(0, accuracy_record("unpruned", first.base, None, **exact))
    return records


def evaluate_seeds(values: Sequence[dict[str, Any]], test_rows: EvaluateRecipes) -> list[Record]:
    """`evaluate`, with a row for the seeds of each size."""
    return by_size(evaluate(values, test_rows))


def by_size(records: list[Record]) -> list[Record]:
    """Adds a row for the seeds of each size: the mean accuracy, and how many draws are detectably better or worse."""
    base = records[0].value
    means = []
    for size in dict.fromkeys(record.label.split(" ")[0] for record in records if "seed" in record.label):
        draws = [r for r in records if r.label.startswith(f"{size} examples, seed") and r.value is not None]
        values = np.array([record.value for record in draws])
        if len(draws) < 2 or base is None:
            continue
        p = holm([1.0 if record.p is None else record.p for record in draws])
        more = {
            "deviation between seeds": round(float(np.std(values, ddof=1)), 4),
            "random": round(float(np.mean([record.more["random"] for record in draws])), 4),
            "exact match": round(float(np.mean([record.more["exact match"] for record in draws])), 4),
            "detectably better": f"{int(np.sum((p < LEVEL) & (values > base)))} of {len(draws)}",
            "detectably worse": f"{int(np.sum((p < LEVEL) & (values < base)))} of {len(draws)}",
        }
        means.append(Record(f"{size} examples, mean of {len(draws)} seeds", float(values.mean()), more=more))
    return records + means
