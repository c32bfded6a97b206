"""The commands of `dsm` for experiments: study, compare, explain, sparsify, and the page of all studies."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.console import Benchmark, Data, Model, RunModel, Runnable
from flows.tables import print_table
from tasks.pipeline.names import RENAMED_STUDIES, STUDIES, WEIGHT_METHODS
from tasks.runtime.errors import InputError

if TYPE_CHECKING:
    from tasks.pipeline.cell import Cell

app = typer.Typer()


@app.command()
def study(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(STUDIES)}.")],
    model: RunModel = None,
    benchmark: Runnable = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="cross_benchmark, word_neurons: a further benchmark; generation: one with free answers; calibration: "
            "a further calibration set, a benchmark or a file of texts (JSONL with a `text` each, or plain text). May "
            "be given several times."
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="calibration: 128 sequences, 3 sparsities, and the prompts of all benchmarks unless --on is given.",
        ),
    ] = False,
    data: Data = None,
) -> None:
    """Bring a cell and a study of it up to date, and show the table of the study."""
    from flows.declaring import Asked, declare
    from flows.environment import prepare, step_timeout
    from flows.removal import taken_back_without_result
    from tasks.pipeline.cell import open_cell
    from tasks.pipeline.settings import load_settings

    step_timeout()
    prepare()
    if name in RENAMED_STUDIES:
        raise InputError("study", f"{name!r} is now {RENAMED_STUDIES[name]!r}")
    if name not in STUDIES:
        raise InputError("study", f"must be one of {', '.join(STUDIES)}, not {name!r}")
    root = Path.cwd()
    known = load_settings(root).benchmarks
    texts = [other for other in on or () if name == "calibration" and (root / other).is_file()]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with taken_back_without_result(root):
        others = [other for other in on or () if other not in texts]
        unknown = [other for other in filter(None, (benchmark, *others)) if other not in known]
        declared = declare(root, Asked([model] if model else (), unknown, data if unknown else None))
        for line in declared.notes:
            print(line, flush=True)
        names = dict(zip(unknown, declared.benchmarks, strict=True))
        model = declared.models[0] if model else None
        benchmark = names.get(benchmark, benchmark) if benchmark else None
        on = [names.get(other, other) for other in on or ()]
        cell = open_cell(model, benchmark)

        from flows.adapt import listed
        from flows.server import start_server
        from flows.study_flows import as_table, list_study
        from flows.study_flows import study as run_study

        with listed(cell, lambda: list_study(root, name, cell.model, cell.benchmark, on, full=full)):
            start_server(f"{name} of {cell.model} on {cell.benchmark}")
            result = run_study(name, cell.model, cell.benchmark)
    print_table(as_table(result))
    print(f"plot: {(cell.study(name) / 'plot.svg').relative_to(root)}")


@app.command()
def compare(model: RunModel = None, benchmark: Runnable = None, data: Data = None) -> None:
    """Compare pruning with the other systems on a cell; the same as `dsm study compare`."""
    study("compare", model, benchmark, data=data)


@app.command()
def explain(
    model: Model = None,
    benchmark: Benchmark = None,
    nsa: Annotated[
        bool,
        typer.Option(
            "--nsa",
            help="Run Neuron Semantic Attribution instead: which words lost neurons. Brings the cell up to date first.",
        ),
    ] = False,
) -> None:
    """Explain what the pruned neurons of a finished cell did, on a page beside its report."""
    from flows.environment import step_timeout
    from tasks.pipeline.cell import open_cell

    timeout = step_timeout()
    cell = open_cell(model, benchmark)
    if nsa:
        _explain_meanings(cell)
        return

    from flows.stages import run_command

    names = ["--model", cell.model, "--benchmark", cell.benchmark]
    run_command("explain", "tasks.steps.explain", names, cell.root, timeout=timeout, log=print)
    print((cell.directory / "explanation.html").relative_to(cell.root))


def _explain_meanings(cell: "Cell") -> None:
    from flows.environment import prepare

    prepare()

    from flows.adapt import listed
    from flows.server import start_server
    from flows.study_flows import list_nsa
    from flows.study_flows import nsa as flow

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with listed(cell, lambda: list_nsa(cell.root, cell.model, cell.benchmark)):
        start_server(f"nsa of {cell.model} on {cell.benchmark}")
        page = flow(cell.model, cell.benchmark)
    print(page.relative_to(cell.root))


@app.command()
def studies(page: Annotated[Path, typer.Option(help="The page to write.")] = Path("docs/studies.md")) -> None:
    """Write the page of all studies that have a result: tables, plots and published figures."""
    from tasks.evidence.study_pages import write_page
    from tasks.pipeline.settings import load_settings

    root = Path.cwd()
    print(f"{page}: {write_page(root, load_settings(root), page)} results")


@app.command()
def sparsify(
    method: Annotated[str, typer.Argument(help=f"One of {', '.join(WEIGHT_METHODS)}.")],
    target: Annotated[
        str, typer.Option(help="The fraction of the weights to remove, or N:M (2:4 keeps 2 of every 4).")
    ] = "0.5",
    model: Model = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="A benchmark in params.yaml, whose train prompts are used, or a file of texts (JSONL with a `text` "
            "each, or plain text); default: that of the first cell."
        ),
    ] = None,
    permuted: Annotated[
        bool, typer.Option("--permuted", help="ria with N:M: group the inputs by RIA's channel permutation.")
    ] = False,
) -> None:
    """Prune single weights of all layers: write a recipe and its masks for `dsm apply`."""
    from flows.environment import prepare, step_timeout
    from flows.removal import taken_back_without_result

    step_timeout()
    prepare()

    from flows.server import start_server
    from flows.sparsify_flow import list_sparse
    from flows.sparsify_flow import sparsify as flow

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with taken_back_without_result(Path.cwd()):
        key, line = list_sparse(Path.cwd(), method, target, model, calibration, permuted=permuted)
        if line:
            print(f"added to params.yaml, so that `dvc repro` keeps it up to date: {line}", flush=True)
        start_server(key)
        directory = flow(key)
    print(f"{directory}: `dsm apply {directory}/sparse.json --model BASE --out DIR` writes the weights")
