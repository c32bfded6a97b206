"""The systems of study `compare` by name."""

from tasks.comparison.caa import caa
from tasks.comparison.calibrated import calibrated
from tasks.comparison.finetuning import lora, sft
from tasks.comparison.iti import iti
from tasks.comparison.sadi import sadi_head, sadi_hidden, sadi_neuron
from tasks.comparison.silencing import pruned, random, random_searched
from tasks.comparison.sparse import weights_pruned
from tasks.comparison.system import System
from tasks.method.recipe import read_recipe
from tasks.pipeline.cell import Cell
from tasks.sparsity.weight_pruning import METHODS


def systems(cell: Cell) -> dict[str, System]:
    """All systems for this cell by name. The cell must have been adapted."""
    recipe, settings = read_recipe(cell.pruned), cell.settings
    examples = recipe.adaptation.n
    return {
        "pruned": pruned(recipe, examples),
        "random": random(recipe, examples),
        "random_searched": random_searched(settings.search, settings.attribution.projection, settings.precision.search),
        "calibrated": calibrated(cell.benchmark_spec),
        "sft": sft,
        "lora": lora,
        "iti": iti,
        "caa": caa,
        "sadi_hidden": sadi_hidden,
        "sadi_neuron": sadi_neuron,
        "sadi_head": sadi_head,
        **{method: weights_pruned(method) for method in METHODS},
    }
