"""The Prefect flows of a study and of Neuron Semantic Attribution: the cell first, then the DVC stage of its own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.adapt import alone, run_step
from flows.cells import edited, file_name, list_entry
from flows.results import NAMES
from flows.run_states import cancelled_by_ctrl_c, with_day
from flows.stages import stages_of
from flows.tables import Column, FittingTable
from tasks.evidence.study_tables import markdown, table
from tasks.pipeline.cell import Cell, open_cell
from tasks.pipeline.runs import StudyRun
from tasks.pipeline.settings import load_settings
from tasks.pipeline.study_inputs import hashes
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json

FULL: dict[str, dict[str, Any]] = {"calibration": {"sequences": 128, "sparsities": [0.3, 0.5, 0.7]}}


def list_study(
    root: Path, name: str, model: str, benchmark: str, others: Sequence[str] = (), *, full: bool = False
) -> str | None:
    """Adds a study of a declared cell to params.yaml, if it is not there.

    Args:
        others: the benchmarks beside the cell's own, for the studies that need some; for `calibration` files of texts,
            too.
        full: the study at its whole size (`FULL`), not at that of an hour.

    The hashes of what it reads beside its cell are written anew.

    Returns:
        What was added or changed.

    Raises:
        InputError: it is there already and `others` or `full` ask for another one, or the line would be wrong.
    """
    key = f"{name}-{model}-{benchmark}"
    if full and name not in FULL:
        raise InputError("full", f"only {', '.join(FULL)} has a size for --full; set the rows of {name} in params.yaml")
    settings = load_settings(root)
    asked: dict[str, Any] = dict(FULL[name]) if full else {}
    on = list(others)
    if name == "calibration":
        files = [other for other in on if other not in settings.benchmarks and (root / other).is_file()]
        on = [other for other in on if other not in files]
        asked |= {"texts": names_of(root, files)} if files else {}
        if full and not on:
            on = [other for other in settings.benchmarks if other != benchmark]
    asked |= {"benchmarks": on} if on else {}
    declared = settings.studies.get(key)
    read = declared or StudyRun.model_construct(benchmarks=on, texts=asked.get("texts", {}))
    known = [name for name in read.benchmarks if name in settings.benchmarks]  # others are refused below
    inputs = hashes(settings, root, known, read.texts, field=f"studies.{key}")
    if declared is not None:
        if any(getattr(declared, field) != value for field, value in asked.items()):
            raise InputError("on", f"studies.{key} is in params.yaml already; change it there")
        if declared.inputs == inputs:
            return None
        with edited(root) as document:
            document["studies"][key]["inputs"] = inputs
        return f"studies.{key}.inputs: {json.dumps(inputs)}"
    asked |= {"inputs": inputs} if inputs else {}
    return list_entry(root, "studies", key, {"study": name, "model": model, "benchmark": benchmark} | asked)


def names_of(root: Path, files: Sequence[str]) -> dict[str, str]:
    """Files by name: their own names, with as many parent folders as are needed to distinguish them.

    Raises:
        InputError: two are the same file, or cannot be distinguished.
    """
    if len({(root / file).resolve() for file in files}) < len(files):
        raise InputError("on", f"names a file twice: {', '.join(files)}")
    for suffix in (False, True):
        for parts in range(1, 1 + max(len(Path(file).parts) for file in files)):
            names = [file_name(file, parts, suffix=suffix) for file in files]
            if len(set(names)) == len(names):
                return dict(zip(names, files, strict=True))
    raise InputError("on", f"{', '.join(files)} give the same names; write them into `texts` in params.yaml")


@flow(
    name="study",
    flow_run_name=with_day("{name}, {model} on {benchmark}"),
    on_crashed=[cancelled_by_ctrl_c],
    validate_parameters=False,
)
def study(name: str, model: str, benchmark: str) -> dict[str, Any]:
    """Brings the cell and then the study up to date; its table becomes an artifact.

    Returns:
        The content of the study's result.json.

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


@flow(
    name="nsa",
    flow_run_name=with_day("{model} on {benchmark}"),
    on_crashed=[cancelled_by_ctrl_c],
    validate_parameters=False,
)
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


def as_table(result: dict[str, Any]) -> FittingTable:
    """The table for a terminal."""
    header, *rows = table(result)
    columns = [Column(name, "right" if i else "left", i > 1, None if i else NAMES) for i, name in enumerate(header)]
    return FittingTable(
        columns,
        rows,
        title=f"{result['study']}: {result['model']} on {result['benchmark']}",
        caption="± standard error; p: exact McNemar test against the unpruned model on the same rows.",
    )


def read_study(cell: Cell, name: str) -> dict[str, Any]:
    """The result of a study."""
    result: dict[str, Any] = read_json(cell.study(name) / "result.json")
    return result
