"""The Prefect flow behind every schedule: new rows, a new challenger, and perhaps a new champion, cell by cell."""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.adapt import adapt, alone, run_action, run_step, say
from flows.environment import stamp
from flows.notify import reason, tell
from flows.refresh import is_unpinned, refresh
from flows.stages import StepFailed
from tasks.pipeline.cell import open_cell
from tasks.pipeline.settings import load_settings


@task(name="refresh", task_run_name="refresh {benchmark}", cache_policy=NO_CACHE)
def take_new_rows(benchmark: str) -> None:
    """Moves the pins of the benchmark's sources to what these hold now."""
    for line in refresh(Path.cwd(), benchmark):
        get_run_logger().info("params.yaml: benchmarks.%s.%s", benchmark, line)
        say("refresh", line)


@flow(name="retrain cell", flow_run_name="{model} {benchmark}", validate_parameters=False)
def retrain_cell(model: str, benchmark: str) -> str:
    """Refreshes the rows of one cell, adapts the model, registers the challenger and judges it.

    Returns:
        What was decided, and why.
    """
    cell = open_cell(model, benchmark)
    with alone(cell):
        take_new_rows(benchmark)
        if is_unpinned(Path.cwd(), benchmark):
            run_step(f"data@{benchmark}", force=True)  # the same rows give the same bytes, and nothing else runs then
        adapt(model, benchmark)
        return run_action("promote", model, benchmark).removeprefix(f"{cell.name}: ")


@flow(
    name="retrain",
    on_failure=[tell],
    on_crashed=[tell],
    on_cancellation=[tell],
    validate_parameters=False,
)
def retrain(models: list[str] | None = None, benchmarks: list[str] | None = None) -> dict[str, str]:
    """Retrains every model x every benchmark, those of the pipeline if none are named. One that fails does not keep
    the others from their turn.

    Returns:
        What was decided for each cell.

    Raises:
        StepFailed: at the end, if a cell failed.
    """
    pipeline = load_settings(Path.cwd()).pipeline
    decided: dict[str, str] = {}
    failed: dict[str, str] = {}
    for model in models or pipeline.models:
        for benchmark in benchmarks or pipeline.benchmarks:
            state: Any = retrain_cell(model, benchmark, return_state=True)
            name = f"{model}-{benchmark}"
            if state.is_completed():
                decided[name] = state.result()
            else:
                failed[name] = reason(state)
                print(f"{stamp(name)}{'failed':<9} {failed[name]}", flush=True)
    create_table_artifact(
        key="retrained",
        description="What became of each cell's challenger",
        table=[{"cell": name, "outcome": what} for name, what in (decided | failed).items()],
    )
    if failed:
        raise StepFailed("retrain", "; ".join(f"{name}: {why}" for name, why in failed.items()))
    return decided
