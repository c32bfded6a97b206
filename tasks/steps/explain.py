"""explain: the roles of the pruned neurons and the effects of pruning, in explanation.json and explanation.html."""

import pandas as pd

from tasks.benchmarks.table import encode_rows, read_split
from tasks.explanation.explanation_page import render
from tasks.explanation.sections import bias_section, calibration_section, input_section, neuron_section
from tasks.method.recipe import read_recipe
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.cell_pages import made_of, write_page
from tasks.pipeline.step import run_step
from tasks.runtime.errors import InputError


def explain(cell: Cell) -> None:
    """Writes explanation.json and explanation.html from the cell's scores, recipe and predictions.

    Raises:
        InputError: one of these does not exist, or the predictions are not those of the test rows.
    """
    for path in (cell.scores, cell.pruned, cell.predictions, cell.test):
        if not path.exists():
            raise InputError(cell.name, f"{path.name} does not exist; run the cell's earlier steps first")
    of = made_of(cell.scores, cell.pruned, cell.predictions, cell.test)
    recipe, predictions = read_recipe(cell.pruned), pd.read_parquet(cell.predictions)
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    table = read_split(cell.test, cell.benchmark_spec.limits.test)
    if table["id"].tolist() != predictions["id"].tolist():
        raise InputError(cell.name, "predictions.parquet has different rows from the test split; run evaluate again")
    rows = encode_rows(table, loaded.tokenizer, stack.context)
    results = {
        "model": cell.model,
        "benchmark": cell.benchmark,
        "layer": recipe.layer,
        "projection": recipe.projection,
        "pruned": len(recipe.neurons),
        "width": recipe.d_ff,
        "n": len(table),
        "options": list(table["options"].iloc[0]) if table["options"].map(tuple).nunique() == 1 else None,
        "inputs": input_section(cell, recipe, loaded, stack, rows, predictions),
        "neurons": neuron_section(cell, recipe, loaded, stack, rows, predictions),
        "calibration": calibration_section(predictions),
        "bias": bias_section(cell, recipe, loaded, stack, rows, predictions),
    }
    page = render(results, cell.benchmark_spec.prompt).encode()
    write_page(cell, "explanation.json", results, of, {"explanation.html": page})


if __name__ == "__main__":
    run_step(explain, description=__doc__)
