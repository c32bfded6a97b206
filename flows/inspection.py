"""The commands of `dsm` that look: plan, show, validate, verify, ui, benchmarks ls. They change nothing."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import AsJson, Data, Limit, RunModel, Runnable, Seed, Set, print_json
from flows.tables import Column, FittingTable, print_table
from tasks.runtime.errors import InputError

app = typer.Typer()
benchmarks = typer.Typer(help="The library of benchmarks.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(benchmarks, name="benchmarks")


@app.command()
def plan(
    model: RunModel = None,
    benchmark: Runnable = None,
    data: Data = None,
    limit: Limit = None,
    seed: Seed = None,
    change: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show what `dsm run` with these options would do, and about how long it would take; params.yaml is not changed."""
    from dataclasses import asdict

    from flows.declaring import asked_for, preview
    from flows.plan import make_plan

    root = Path.cwd()
    models, named = [model] if model else [], [benchmark] if benchmark else []
    cell, changed, notes = preview(root, asked_for(root, models, named, data, limit, seed, change or ()))
    made = make_plan(cell, changed)
    if as_json:
        print_json({"model": cell.model, "benchmark": cell.benchmark, **asdict(made)})
        return
    for note in notes:
        print(note)
    columns = [Column("stage", least=20), Column("does"), Column("forward passes", "right"), Column("minutes", "right")]
    rows = [
        [
            line.stage.partition("@")[0],
            line.does,
            f"{line.passes:,}" if line.passes else "",
            f"{line.seconds / 60:.1f}" if line.seconds else "",
        ]
        for line in made.lines
    ]
    passes, seconds = (sum(getattr(line, name) for line in made.lines) for name in ("passes", "seconds"))
    total = "total, estimated" + (f" for {made.assumed}" if made.assumed else "")
    rows += [[], [total, "", f"{passes:,}", f"{seconds / 60:.1f}"]]
    print_table(FittingTable(columns, rows, title=f"{cell.model} on {cell.benchmark}", caption=made.basis))


@app.command()
def show(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the results of all cells."""
    from dataclasses import asdict

    from flows.results import all_results, as_markdown, as_table
    from tasks.pipeline.settings import load_settings

    root = Path.cwd()
    results = all_results(root, load_settings(root))
    if as_json:
        print_json([asdict(result) for result in results])
    elif results and markdown:
        print(as_markdown(results))
    elif results:
        print_table(as_table(results))
    else:
        print("no cell has a result yet: `dsm run` makes one")


@app.command()
def ui(port: Annotated[int, typer.Option(help="The port on 127.0.0.1.")] = 5000) -> None:
    """Start the MLflow UI on 127.0.0.1; it runs until Ctrl-C."""
    from flows.environment import child_environment
    from tasks.pipeline.settings import PARAMS
    from tasks.tracking.database import experiment_in
    from tasks.tracking.leaderboard import results_page
    from tasks.tracking.store import EXPERIMENT, tracking_uri

    uri = tracking_uri(Path.cwd())
    if uri.startswith(("http://", "https://")):
        print(f"the tracking server shows its own pages: {uri}")
        return
    if not (Path.cwd() / PARAMS).is_file():  # MLflow would make an empty database here, and show that
        raise InputError(PARAMS, f"not found in {Path.cwd()}; run from the project's directory")
    experiment = experiment_in(uri, EXPERIMENT)
    print(f"http://127.0.0.1:{port}{results_page(experiment) if experiment else ''}")
    print("(it answers a few seconds after MLflow has started; Ctrl-C stops it)", flush=True)
    arguments = ["server", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", uri]
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", *arguments], child_environment())


@app.command()
def validate() -> None:
    """Check every field of params.yaml, and the local files that it names: do they exist, do their columns match?

    Nothing is downloaded: of sources on an index or a hub only the fields are checked.
    """
    from flows.environment import prepare
    from tasks.benchmarks.prepare import check_rows
    from tasks.benchmarks.rows import check_templates
    from tasks.pipeline.settings import load_settings
    from tasks.pipeline.study_inputs import check_inputs
    from tasks.pipeline.wanted import check_model_path
    from tasks.sources.fetch import local_path

    root = Path.cwd()
    settings = load_settings(root)
    if settings.retrain.schedules:
        prepare(places=False)

        from flows.deployments import check_schedules

        check_schedules(settings)
    for study in settings.studies.values():
        check_inputs(study, settings, root)
    for name, benchmark in settings.benchmarks.items():
        check_templates(benchmark, field=f"benchmarks.{name}")
    for name, model in settings.models.items():
        if model.source.kind == "path":
            field = f"models.{name}.source"
            check_model_path(local_path(model.source, field=field, root=root), field=field)
    for name, benchmark in settings.benchmarks.items():
        check_rows(name, benchmark, root)
    for name, model in settings.models.items():
        print(f"model {name}: {_source(model.source)}{_listed(name, settings.pipeline.models)}")
    for name, benchmark in settings.benchmarks.items():
        print(
            f"benchmark {name}: {_options(benchmark.options)}, {_source(benchmark.train.source)}"
            f"{_listed(name, settings.pipeline.benchmarks)}"
        )


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Hash all results and models, and their copies in DVC's cache, and compare the hashes with dvc.lock.

    Exits with 1 if a file is missing or damaged, and if there is nothing to verify.
    """
    from flows.integrity import look_at, outputs_of, summary
    from flows.stages import StepFailed, cache_directory

    root = Path.cwd()
    outputs = outputs_of(None, root)
    if not outputs:  # not 0: nothing was found to be whole
        raise StepFailed("verify", "there is nothing to verify: dvc.lock names no outputs; `dsm run` makes some")
    cache = cache_directory(root)
    conditions = []
    for output in outputs:
        conditions.append(look_at(output, root, cache))
        for line in conditions[-1].lines() if not as_json else ():
            print(line)
    if as_json:
        looked = [
            {
                "path": output.path,
                "whole": one.whole,
                "damaged": {str(path): problem for path, problem in one.damaged.items()},
                "restorable": list(map(str, one.restorable)),
                "lost": list(map(str, one.lost)),
            }
            for output, one in zip(outputs, conditions, strict=True)
        ]
        print_json(looked)
    if not all(one.whole for one in conditions):
        raise StepFailed("verify", summary(conditions))
    if not as_json:
        print(summary(conditions))


@benchmarks.command("ls")
def list_benchmarks(
    data: Data = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="Only the benchmarks of one family: sentiment, 'question answering', similarity or reasoning."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print only the library, as a Markdown table.")] = False,
) -> None:
    """Show the benchmarks of the library and of params.yaml: rows, options, licence, and where the rows come from."""
    from itertools import groupby

    from flows.benchmark_list import COLUMNS, catalogue, page_table
    from tasks.pipeline.settings import PARAMS

    if markdown:
        print(page_table(family))
        return
    caption = (
        "train and test: rows as published; majority: share of the commonest right option; "
        "from: what a line in params.yaml without `source` reads."
    )
    rows: list[list[str]] = []
    for section in catalogue(Path.cwd(), data, family):
        declared = section[0][0].startswith(PARAMS) if section else True
        for title, lines in [("", section)] if declared else groupby(section, key=lambda line: line[1]):
            rows += [[]] if rows else []
            rows += [[title]] if title else []
            rows += [[name, *cells] for name, _, *cells in lines]
    print_table(FittingTable(COLUMNS, rows, caption=caption))


def _options(options: Any) -> str:
    return "options by row" if isinstance(options, str) else f"{len(options)} options"


def _source(source: Any) -> str:
    if source.kind == "local":
        return ", ".join(source.paths[:2]) + (f" and {len(source.paths) - 2} more" if len(source.paths) > 2 else "")
    if source.kind == "wheel":
        return f"{source.file} of the wheel {source.package}=={source.version}"
    if source.kind == "wheels":
        return f"{source.file} in {len(source.parts)} wheels on PyPI"
    return f"{source.id}@{source.revision} on the hub" if source.kind == "hub" else str(source.path)


def _listed(name: str, names: list[str]) -> str:
    return "" if name in names else " (not in the pipeline yet)"
