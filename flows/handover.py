"""The commands of `dsm` that use a pruned model: export, apply, evaluate, try."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.console import AsJson, Benchmark, Model, print_json
from flows.tables import print_table

app = typer.Typer()


@app.command()
def export(
    out: Annotated[Path | None, typer.Option(help="The directory to create; must not exist.")] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="Upload it to this repository on the Hugging Face hub; a new one is private until you change that.",
        ),
    ] = None,
    model: Model = None,
    benchmark: Benchmark = None,
) -> None:
    """Write the pruned model of a cell as a plain Hugging Face directory, or push it to the Hugging Face hub."""
    from tasks.pipeline.cell import open_cell
    from tasks.runtime.errors import InputError

    if out is None and push is None:
        raise InputError("export", "name a directory with --out, or a repository on the hub with --push")
    cell = open_cell(model, benchmark)

    from tasks.tracking import export as exports
    from tasks.tracking import hub

    if push is not None:
        print(hub.push(cell, push, out))
    elif out is not None:
        exports.export(cell, out)
        print(out)


@app.command("apply")
def apply_recipe(
    recipe: Annotated[
        list[Path],
        typer.Argument(help="A pruned.json, or several for different layers; or a sparse.json beside its masks."),
    ],
    model: Annotated[Path, typer.Option(help="The Hugging Face directory of the base model that the recipe names.")],
    out: Annotated[Path, typer.Option(help="The directory to create; must not exist.")],
) -> None:
    """Apply a recipe to a copy of its base model. A model with another hash is refused."""
    from tasks.tracking import export as exports

    exports.apply(recipe[0], model, out, *recipe[1:])
    print(out)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="pruned.json or sparse.json, a model directory (as written by `dsm export`), or the name of a cell or "
            "a model in params.yaml.",
        ),
    ],
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="A benchmark of the library, a JSONL, CSV or Parquet file, or a name under benchmarks in params.yaml; "
            "default: that of the recipe."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base model's directory or name; default: the fetched model that the recipe names by hash."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of test rows; default: the benchmark's limits.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model or a recipe beside its base on the same test rows; params.yaml is not changed."""
    from flows.environment import step_timeout
    from flows.stages import run_command, run_stage
    from flows.verdicts import comparison_table, names
    from tasks.pipeline.settings import load_settings
    from tasks.runtime.files import read_json, scratch_beside

    timeout, root = step_timeout(), Path.cwd()

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    log(f"{model}: loading the models and the test rows")
    if benchmark in load_settings(root).pipeline.benchmarks:
        run_stage(f"data@{benchmark}", root, timeout=timeout, log=log)
    with scratch_beside(root / "data" / "scratch" / "evaluate") as work:
        arguments = [model, "--out", str(work / "found.json")]
        named = {"--benchmark": benchmark, "--base": base, "--limit": limit}
        arguments += [str(part) for pair in named.items() if pair[1] is not None for part in pair]
        run_command("evaluate", "tasks.steps.versus", arguments, root, timeout=timeout, log=log)
        comparison = read_json(work / "found.json")
    if as_json:
        print_json(comparison)
    else:
        print_table(comparison_table(comparison))
        print(*names(comparison), sep="\n")


@app.command("try")
def try_row(
    row: Annotated[
        str | None,
        typer.Argument(
            help="The text of a row, or a JSON object with its fields; without it, the command asks for rows."
        ),
    ] = None,
    model: Model = None,
    benchmark: Benchmark = None,
    as_json: AsJson = False,
) -> None:
    """Ask the base and the pruned model of a cell about a row of your own: options, probabilities, free answers."""
    from flows.environment import child_environment
    from tasks.pipeline.cell import open_cell

    cell = open_cell(model, benchmark)
    arguments = ["--model", cell.model, "--benchmark", cell.benchmark, *(["--json"] if as_json else [])]
    arguments += [] if row is None else [f"--row={row}"]
    print(f"{cell.name}: loading the model", file=sys.stderr, flush=True)
    environment = child_environment()
    del environment["DSM_FLOW_PID"]  # there is no flow to end with
    # It takes this process's place: the terminal is its own, and so is its exit code.
    os.execve(sys.executable, [sys.executable, "-m", "tasks.steps.try_row", *arguments], environment)
