"""Study `interactions`: how much of a neuron's score is its own, and how much it shares with others."""

import numpy as np
import pandas as pd

from tasks.method.attribute import attributor_on
from tasks.method.interactions import interactions
from tasks.method.neurons import random_neurons
from tasks.runtime.files import read_jsonl
from tasks.studies.adapting import with_changes
from tasks.studies.context import Record, StudyContext

NEURONS = 10  # of each group; every one costs two gradients for each node and prompt


def parts(context: StudyContext) -> list[str]:
    return ["pruned", "random"]


def compute(context: StudyContext, part: str) -> list[Record]:
    """The most prominent pruned neurons, or as many random ones of the recipe's layer (seed 0), on the examples."""
    recipe = context.recipe
    ranked = context.scores.ranked[recipe.layer]
    if part == "pruned":
        neurons = np.array(sorted(recipe.neurons, key=lambda neuron: -ranked[neuron])[:NEURONS])
    else:
        neurons = random_neurons(len(ranked), min(NEURONS, len(ranked)), 0)
    settings = with_changes(
        context.settings.attribution, method="integrated_gradients", path="layer", projection=recipe.projection
    )
    table = pd.DataFrame(read_jsonl(context.cell.samples))
    attributor = attributor_on(context.stack, context.loaded.tokenizer, table, settings)
    result = interactions(attributor.path, recipe.layer, neurons.tolist())
    alone, shared = np.abs(result.alone).sum(), np.abs(result.shared).sum()
    pairs = np.triu((result.values + result.values.T) / 2, 1)
    first, second = np.unravel_index(np.abs(pairs).argmax(), pairs.shape)
    label = {"pruned": "most prominent pruned neurons", "random": "random neurons of the layer"}[part]
    return [
        Record(
            f"{len(neurons)} {label}",
            float(alone / (alone + shared)) if alone + shared else None,
            more={
                "scores": round(float(result.scores.sum()), 4),
                "of these alone": round(float(result.alone.sum()), 4),
                "among each other": round(float(2 * pairs.sum()), 4),
                "strongest pair": f"{neurons[first]} and {neurons[second]}: {2 * pairs[first, second]:+.4f}",
                "layer": recipe.layer,
            },
        )
    ]
