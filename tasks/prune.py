"""prune: choose (layer, fraction) from the grid and write the recipe, which is the pruned model."""

import json

import numpy as np
import pandas as pd
from safetensors import safe_open

from tasks.models.hashing import sha256_directory
from tasks.pipeline.cell import Cell
from tasks.pipeline.files import write_json
from tasks.pipeline.step import run_step
from tasks.pruning.grid import UNPRUNED
from tasks.pruning.masks import top_neurons
from tasks.pruning.recipe import AdaptationResult, Recipe, choose


def prune(cell: Cell) -> None:
    """Writes pruned.json."""
    grid = pd.read_parquet(cell.grid)
    chosen, trail = choose(grid)
    base = grid[grid.layer == UNPRUNED].iloc[0]
    with safe_open(cell.scores, framework="numpy") as file:
        scores = file.get_tensor("scores")
        adaptation_size = json.loads(file.metadata()["header"])["n"]
    layer = int(chosen["layer"])
    recipe = Recipe(
        model=cell.model,
        benchmark=cell.benchmark,
        base_sha256=sha256_directory(cell.model_dir),
        layer=layer,
        fraction=chosen["fraction"],
        layers=scores.shape[0],
        d_ff=scores.shape[1],
        neurons=np.sort(top_neurons(scores[layer], int(chosen["neurons"]))).tolist(),
        adaptation=AdaptationResult(
            n=adaptation_size,
            accuracy=chosen["accuracy"],
            margin=chosen["margin"],
            base_accuracy=base.accuracy,
            base_margin=base.margin,
        ),
        trail=trail,
    )
    write_json(cell.pruned, recipe.model_dump())


if __name__ == "__main__":
    run_step(prune, description=__doc__)
