"""The commands of `dsm` that use a pruned model: export, apply, evaluate, try."""

from pathlib import Path
from typing import Annotated

import typer

from flows.console import Benchmark, Model

app = typer.Typer()


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The directory to make; must not exist.")],
    model: Model = None,
    benchmark: Benchmark = None,
) -> None:
    """Write the pruned model of a cell as a plain Hugging Face directory."""
    from tasks.pipeline.cell import open_cell

    cell = open_cell(model, benchmark)

    from tasks.tracking import export as exports

    exports.export(cell, out)
    print(out)


@app.command("apply")
def apply_recipe(
    recipe: Annotated[Path, typer.Argument(help="A pruned.json, or a sparse.json beside its masks.")],
    model: Annotated[Path, typer.Option(help="The Hugging Face directory of the base model that the recipe names.")],
    out: Annotated[Path, typer.Option(help="The directory to make; must not exist.")],
) -> None:
    """Apply a recipe to a copy of its base model; another model is refused by its hash."""
    from tasks.tracking import export as exports

    exports.apply(recipe, model, out)
    print(out)
