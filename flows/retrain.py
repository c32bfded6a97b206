"""The Prefect flow of the schedules: for each cell, new rows, a new challenger and, if it is better, a new champion."""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.adapt import adapt, alone, run_action, run_step, say
from flows.cells import named_cells
from flows.environment import stamp
from flows.notify import reason, tell
from flows.refresh import is_unpinned, refresh
from flows.run_states import cancelled_by_ctrl_c, with_day
from flows.stages import StepFailed
from tasks.pipeline.cell import open_cell
from tasks.pipeline.settings import load_settings


@task(name="refresh", task_run_name="refresh {benchmark}", cache_policy=NO_CACHE)
def take_new_rows(benchmark: str) -> None:
    """Updates the pins of the benchmark's sources to their current content."""
    for line in refresh(Path.cwd(), benchmark):
        get_run_logger().info("params.yaml: benchmarks.%s.%s", benchmark, line)
        say("refresh", line)


@flow(
    name="retrain cell",
    flow_run_name=with_day("{model} on {benchmark}"),
    on_crashed=[cancelled_by_ctrl_c],
    validate_parameters=False,
)
def retrain_cell(model: str, benchmark: str) -> str:
    """Refreshes the rows of one cell, adapts the model, registers the challenger and judges it.

    Returns:
        The decision and its reason.
    """
    cell = open_cell(model, benchmark)
    with alone(cell):
        take_new_rows(benchmark)
        if is_unpinned(Path.cwd(), benchmark):
            run_step(f"data@{benchmark}", force=True)  # unchanged rows give the same bytes, so no later step runs
        adapt(model, benchmark)
        return run_action("promote", model, benchmark).removeprefix(f"{cell.name}: ")


@flow(
    name="retrain",
    on_failure=[tell],
    on_crashed=[tell, cancelled_by_ctrl_c],
    on_cancellation=[tell],
    validate_parameters=False,
)
def retrain(models: list[str] | None = None, benchmarks: list[str] | None = None) -> dict[str, str]:
    """Retrains the cells of the pipeline that have one of these models and one of these benchmarks; by default all.

    If a cell fails, the others are still retrained.

    Returns:
        The decision for each cell.

    Raises:
        InputError: no cell has one of the names.
        StepFailed: at the end, if a cell failed.
    """
    decided: dict[str, str] = {}
    failed: dict[str, str] = {}
    for cell in named_cells(load_settings(Path.cwd()), models, benchmarks, field="retrain"):
        state: Any = retrain_cell(cell.model, cell.benchmark, return_state=True)
        if state.is_completed():
            decided[cell.name] = state.result()
        else:
            failed[cell.name] = reason(state)
            print(f"{stamp(cell.name)}{'failed':<9} {failed[cell.name]}", flush=True)
    create_table_artifact(
        key="retrained",
        description="The decision on each cell's challenger",
        table=[{"cell": name, "outcome": what} for name, what in (decided | failed).items()],
    )
    if failed:
        raise StepFailed("retrain", "; ".join(f"{name}: {why}" for name, why in failed.items()))
    return decided
