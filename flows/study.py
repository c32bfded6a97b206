"""The Prefect flows of a study and of Neuron Semantic Attribution: the cell first, then the DVC stage of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from rich.table import Table

from flows.adapt import alone, run_step
from flows.cells import list_entry
from flows.stages import stages_of
from tasks.evidence.studies import markdown, table
from tasks.pipeline.cell import Cell, open_cell
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import read_json
from tasks.pipeline.settings import load_settings


def list_study(root: Path, name: str, model: str, benchmark: str, others: Sequence[str] = ()) -> str | None:
    """Adds a study of a declared cell to params.yaml, if it is not there.

    Args:
        others: the benchmarks beside the cell's own, for the studies that need some.

    Returns:
        What was added.

    Raises:
        InputError: it is there already and `others` asks for another one, or the line would be wrong.
    """
    key = f"{name}-{model}-{benchmark}"
    declared = load_settings(root).studies.get(key)
    if declared is not None:
        if others and list(others) != declared.benchmarks:
            raise InputError("on", f"studies.{key} is in params.yaml already; say there which benchmarks")
        return None
    entry: dict[str, Any] = {"study": name, "model": model, "benchmark": benchmark}
    return list_entry(root, "studies", key, entry | ({"benchmarks": list(others)} if others else {}))


@flow(name="study", flow_run_name="{name} {model} {benchmark}", validate_parameters=False)
def study(name: str, model: str, benchmark: str) -> dict[str, Any]:
    """Brings the cell and then the study up to date; its table becomes an artifact.

    Returns:
        What stands in the study's result.json.

    Raises:
        InputError, StepFailed, Busy: as `flows.adapt.adapt`.
    """
    cell = open_cell(model, benchmark)
    key = f"{name}-{cell.name}"
    _after_its_cell(cell, f"study@{key}")
    result = read_study(cell, name)
    create_markdown_artifact(
        key=key.lower().replace("_", "-"),
        description=f"{name}: {model} on {benchmark}",
        markdown=markdown(table(result)),
    )
    return result


def list_nsa(root: Path, model: str, benchmark: str) -> str | None:
    """Adds the Neuron Semantic Attribution of a declared cell to params.yaml, if it is not there.

    Returns:
        What was added.
    """
    key = f"{model}-{benchmark}"
    if key in load_settings(root).nsa:
        return None
    return list_entry(root, "nsa", key, {"model": model, "benchmark": benchmark})


@flow(name="nsa", flow_run_name="{model} {benchmark}", validate_parameters=False)
def nsa(model: str, benchmark: str) -> Path:
    """Brings the cell and then its Neuron Semantic Attribution up to date.

    Returns:
        The page.

    Raises:
        InputError, StepFailed, Busy: as `flows.adapt.adapt`.
    """
    cell = open_cell(model, benchmark)
    _after_its_cell(cell, f"nsa@{cell.name}")
    return cell.directory / "nsa.html"


def _after_its_cell(cell: Cell, last: str) -> None:
    with alone(cell):
        stages = stages_of(cell.model, cell.benchmark)
        run_step(stages[0], readers=[*stages[1:], last])
        for stage in [*stages[1:], last]:
            run_step(stage)


def as_table(result: dict[str, Any]) -> Table:
    """The table for a terminal."""
    header, *rows = table(result)
    shown = Table(
        title=f"{result['study']}: {result['model']} on {result['benchmark']}",
        caption="± standard error; p: exact McNemar test against the unpruned model on the same rows",
    )
    for i, name in enumerate(header):
        shown.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def read_study(cell: Cell, name: str) -> dict[str, Any]:
    """The result of a study."""
    result: dict[str, Any] = read_json(cell.study(name) / "result.json")
    return result
