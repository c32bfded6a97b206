"""prune: choose (layer, fraction) from the grid and write the recipe, which is the pruned model."""

import numpy as np
import pandas as pd

from tasks.models.hashing import sha256_directory
from tasks.pipeline.cell import Cell
from tasks.pipeline.files import write_json
from tasks.pipeline.step import run_step
from tasks.pruning.grid import UNPRUNED
from tasks.pruning.masks import read_ranking, top_neurons
from tasks.pruning.recipe import AdaptationResult, Recipe, choose


def prune(cell: Cell) -> None:
    """Writes pruned.json."""
    grid = pd.read_parquet(cell.grid)
    chosen, trail = choose(grid)
    base = grid[grid.layer == UNPRUNED].iloc[0]
    ranking = read_ranking(cell.scores)
    layers, width = ranking.values.shape
    layer = int(chosen["layer"])
    recipe = Recipe(
        model=cell.model,
        benchmark=cell.benchmark,
        base_sha256=sha256_directory(cell.model_dir),
        projection=ranking.projection,
        layer=layer,
        fraction=chosen["fraction"],
        layers=layers,
        d_ff=width,
        neurons=np.sort(top_neurons(ranking.values[layer], int(chosen["neurons"]))).tolist(),
        adaptation=AdaptationResult(
            n=ranking.header["n"],
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
