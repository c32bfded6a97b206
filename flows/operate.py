"""The commands of `dsm` for a workflow that runs again and again: retrain, serve, deploy, versions, promote."""

import os
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from flows.console import AsJson, Benchmark, Model, print_json
from flows.tables import Column, FittingTable, print_table

app = typer.Typer()


@app.command()
def retrain(model: Model = None, benchmark: Benchmark = None) -> None:
    """Read new rows, adapt, register, and promote the challenger if the rule in params.yaml says so."""
    from flows.environment import prepare
    from tasks.pipeline.cell import open_cell

    cell = open_cell(model, benchmark)
    prepare()

    from flows.retrain import retrain as flow
    from flows.server import start_server

    start_server(f"{cell.model} on {cell.benchmark}")
    for name, decided in flow([cell.model], [cell.benchmark]).items():
        print(f"{name}: {decided}")


@app.command()
def serve() -> None:
    """Run the schedules of params.yaml in this process, until Ctrl-C; needs a Prefect server (PREFECT_API_URL)."""
    from filelock import FileLock, Timeout

    from flows.environment import SERVED, prepare, stamp
    from flows.stages import StepFailed
    from tasks.pipeline.settings import load_settings
    from tasks.runtime.errors import InputError

    settings = load_settings(Path.cwd())
    if not settings.retrain.schedules:
        raise InputError("retrain.schedules", "is empty: there is nothing to serve")
    prepare()

    from prefect import serve as serve_all

    from flows.deployments import check_schedules, pause, served, watch_for_dead_runs
    from flows.server import named_server, needs_server

    check_schedules(settings)
    needs_server()
    scratch = Path.cwd() / "data" / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    try:  # held until this process ends
        FileLock(scratch / "serve.lock", is_singleton=True).acquire(timeout=0)
    except Timeout:
        raise StepFailed("serve", "another `dsm serve` runs the schedules of this project; stop it first") from None
    os.environ[SERVED] = "1"
    watch_for_dead_runs()
    print(f"{stamp()}serving, with {named_server()}", flush=True)
    for name, schedule in settings.retrain.schedules.items():
        print(f"{stamp()}retrain/{name}: {schedule.cron} {schedule.timezone}", flush=True)
    # Prefect's own handler of SIGTERM does not await it, and Python would say so among the lines of the runs.
    warnings.filterwarnings("ignore", "coroutine 'Runner.astop' was never awaited", RuntimeWarning)
    try:
        serve_all(*served(settings), print_starting_message=False, pause_on_shutdown=False)
    finally:
        for line in pause(settings):
            print(f"{stamp()}{line}", flush=True)


@app.command()
def deploy() -> None:
    """Bring a Prefect server's deployments in line with the schedules of params.yaml, for workers to run."""
    from flows.environment import prepare
    from tasks.pipeline.settings import load_settings

    settings = load_settings(Path.cwd())
    prepare()

    from flows.deployments import deploy as bring_in_line
    from flows.server import needs_server

    needs_server()
    for line in bring_in_line(Path.cwd(), settings):
        print(line)
    print(f"start a worker: prefect worker start --pool {settings.retrain.pool}")


@app.command()
def versions(model: Model = None, benchmark: Benchmark = None, as_json: AsJson = False) -> None:
    """Show the registered versions of a cell, and every change of its champion."""
    from dataclasses import asdict

    from tasks.pipeline.cell import open_cell

    cell = open_cell(model, benchmark)

    from tasks.tracking.promotion import versions as registered

    entries, moves = registered(cell)
    if as_json:
        print_json({"versions": [asdict(one) for one in entries], "moves": [asdict(move) for move in moves]})
        return
    rows: list[list[str]] = []
    for version in entries:
        metrics = version.metrics
        before, after = (
            f"{metrics[f'accuracy_{name}']:.3f} ± {metrics[f'stderr_{name}']:.3f}" for name in ("base", "pruned")
        )
        rows += [[]] if rows else []
        rows.append(
            [
                "\n".join([str(version.number), *version.aliases]),
                f"{datetime.fromtimestamp(version.made / 1000, UTC):%Y-%m-%d\n%H:%M} UTC",
                f"{before}\n{after}",
                f"{metrics['n']:.0f}",
                f"{metrics['p_value']:.2g}",
                version.reason,
            ]
        )
    columns = [
        *(Column("version"), Column("made"), Column("base, pruned"), Column("n", "right"), Column("p", "right")),
        Column("promotion", least=9),
    ]
    caption = "p: exact McNemar test, pruned against base, on the n test rows at that time."
    print_table(FittingTable(columns, rows, title=cell.name, caption=caption))
    for move in moves:
        print(f"{move.when}: champion {move.before or 'none'} -> {move.after}, by {move.who}: {move.why}")


@app.command()
def promote(
    version: Annotated[int, typer.Argument(help="A number that `dsm versions` shows.")],
    why: Annotated[str, typer.Option(help="The reason, for the record.")],
    model: Model = None,
    benchmark: Benchmark = None,
) -> None:
    """Make a registered version the champion: a rollback, or a choice against the rule. The reason is recorded."""
    from tasks.pipeline.cell import open_cell

    cell = open_cell(model, benchmark)

    from tasks.tracking.promotion import promote as make_champion

    before = make_champion(cell, version, why)
    print(f"{cell.name}: version {version} is the champion now (before: {before or 'none'})")
