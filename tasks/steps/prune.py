"""prune: choose (layer, fraction) from the grid and write the recipe, the pruned model."""

import pandas as pd

from tasks.method.recipe import make_recipe
from tasks.method.scores import read_scores
from tasks.models.hashing import recorded_hash
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.files import write_json


def prune(cell: Cell) -> None:
    """Writes pruned.json."""
    recipe = make_recipe(
        pd.read_parquet(cell.grid),
        read_scores(cell.scores),
        model=cell.model,
        benchmark=cell.benchmark,
        base_sha256=recorded_hash(cell.model_dir),
    )
    write_json(cell.pruned, recipe.model_dump())


if __name__ == "__main__":
    run_step(prune, description=__doc__)
