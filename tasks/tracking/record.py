"""Logs a cell as an MLflow run and registers its pruned model.

This is not a DVC stage, since its effect is in MLflow. Runs and versions are found by a hash of their content: a second
call does nothing, and a call after a crash continues with what the crashed one had finished. The alias is moved after
everything else. If two machines register the same content on one server at the same time, the lower version stays.
"""

import os
import socket
from datetime import UTC, datetime
from typing import Any

from tasks.evidence.verdict import verdict
from tasks.pipeline.cell import Cell
from tasks.pipeline.cell_pages import remove_stale_explanation, stale_pages
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, sha256_file, sha256_json
from tasks.tracking.leaderboard import write_leaderboard
from tasks.tracking.provenance import dvc_tags, git_tags, metrics, parameters, system_metrics
from tasks.tracking.served_model import log_model
from tasks.tracking.store import CHALLENGER, CONTENT, FLOW, check_answers, options_of, probabilities, store

EVIDENCE = "evidence"  # tag of a run: hash of its report and transfer check
PROJECT = "project"  # tag of a run: the machine and directory it comes from
CHECKED = 8  # test rows on which a version must agree with `evaluate` before the alias is moved


def register(cell: Cell) -> None:
    """Logs the cell as an MLflow run and registers its pruned model as `<model>-<benchmark>` with alias `challenger`.

    Raises:
        InputError: a file of the cell is missing, MLflow cannot be reached, or the answers of the registered model
            differ from predictions.parquet.
    """
    for path in (cell.pruned, cell.evaluation, cell.predictions, cell.report):
        if not path.exists():
            raise InputError(cell.name, f"{path.name} does not exist; run the cell's earlier steps first")
    remove_stale_explanation(cell)
    content = _content(cell)
    with store(cell.root) as (client, experiment):
        version, is_new = _version(client, experiment, cell, content)
        if not is_new:
            _log_new_evidence(client, experiment, cell, content)
        aliases = client.get_registered_model(cell.name).aliases
        if int(aliases.get(CHALLENGER, 0)) != version:
            _check(cell, version)
            client.update_model_version(cell.name, str(version), description=_description(cell))
            client.set_registered_model_alias(cell.name, CHALLENGER, str(version))
        write_leaderboard(client, experiment)
    print(f"{cell.name}: {'registered as' if is_new else 'already registered as'} version {version} ({CHALLENGER})")


def _content(cell: Cell) -> str:
    """Hash of a version's content: the recipe (with the base model's hash), its evaluation, prompt and options."""
    spec = cell.benchmark_spec
    parts = {"pruned": read_json(cell.pruned), "evaluation": read_json(cell.evaluation)}
    asked: dict[str, Any] = {"prompt": spec.prompt, "options": spec.options}
    if cell.columns.exists():
        asked["kinds"] = read_json(cell.columns)["kinds"]
    return sha256_json(parts | asked | ({"chat": spec.chat} if spec.chat else {}))


def _version(client: Any, experiment: str, cell: Cell, content: str) -> tuple[int, bool]:
    """The number of the version with this content, and whether this call created it."""
    import mlflow

    if known := _first(client, cell, content):
        return int(known.version), False
    model_id = _logged_model(client, experiment, cell, content)
    made = mlflow.register_model(f"models:/{model_id}", cell.name, tags={CONTENT: content})
    first = _first(client, cell, content)
    if int(first.version) == int(made.version):
        return int(made.version), True
    client.delete_model_version(cell.name, made.version)
    if first.run_id != made.run_id:
        client.delete_logged_model(model_id)
        client.delete_run(made.run_id)
    return int(first.version), False


def _first(client: Any, cell: Cell, content: str) -> Any:
    """The lowest version with this content, or None. Another machine may be about to delete a higher one."""
    versions = client.search_model_versions(f"name = '{cell.name}'")
    same = [version for version in versions if version.tags.get(CONTENT) == content]
    return min(same, key=lambda version: int(version.version), default=None)


def _project(cell: Cell) -> str:
    return f"{socket.gethostname()}:{cell.root.resolve()}"


def _logged_model(client: Any, experiment: str, cell: Cell, content: str) -> str:
    """The id of the model in the finished run with this content. A run that did not finish is replaced."""
    for run in client.search_runs([experiment], f"tags.{CONTENT} = '{content}' and tags.cell = '{cell.name}'"):
        status, from_here = run.info.status, run.data.tags.get(PROJECT) == _project(cell)
        if status == "FINISHED" and run.outputs and run.outputs.model_outputs:
            return str(run.outputs.model_outputs[0].model_id)
        # A run of another machine may still be active; one from here is not, since this process has the lock.
        if status in ("FAILED", "KILLED") or (status == "RUNNING" and from_here):
            for output in run.outputs.model_outputs if run.outputs else ():
                client.delete_logged_model(output.model_id)
            client.delete_run(run.info.run_id)
    return _log_run(experiment, cell, content)


def _evidence(cell: Cell) -> str:
    """Hash of what may change without a new version: the transfer check, and the report with all settings."""
    return sha256_json([sha256_file(path) for path in (cell.transfer, cell.report)])


def _log_new_evidence(client: Any, experiment: str, cell: Cell, content: str) -> None:
    """Logs a run without a model if no run of this content has the present report and transfer check."""
    wanted = f"tags.{CONTENT} = '{content}' and tags.{EVIDENCE} = '{_evidence(cell)}' and tags.cell = '{cell.name}'"
    if not any(run.info.status == "FINISHED" for run in client.search_runs([experiment], wanted)):
        _log_run(experiment, cell, content, with_model=False)


def _log_run(experiment: str, cell: Cell, content: str, *, with_model: bool = True) -> str:
    """Logs the cell as a new run. Returns the id of the logged model, empty without a model."""
    import mlflow
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    from tasks.evidence.figures import figures
    from tasks.evidence.reading import read_evidence

    client = mlflow.MlflowClient()
    evidence = read_evidence(cell)
    tags = {
        CONTENT: content,
        EVIDENCE: _evidence(cell),
        PROJECT: _project(cell),
        "cell": cell.name,
        "model": cell.model,
        "benchmark": cell.benchmark,
    }
    with mlflow.start_run(
        experiment_id=experiment,
        run_name=f"{cell.model} on {cell.benchmark}, {datetime.now(UTC):%Y-%m-%d}",
        tags=tags | _flow_tags() | git_tags(cell.root) | dvc_tags(cell),
        description=_description(cell),
        nested=True,  # the caller may have an active run
        log_system_metrics=False,
    ) as run:
        if MLFLOW_PARENT_RUN_ID in run.data.tags:  # that of the caller, to which this run does not belong
            client.delete_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID)
        mlflow.log_params(parameters(cell, evidence.pruned))
        mlflow.log_metrics(metrics(cell))
        client.log_batch(run.info.run_id, metrics=system_metrics(cell))
        left_out = {cell.report, *stale_pages(cell)}
        for path in (cell.report, *(path for path in sorted(cell.directory.iterdir()) if path not in left_out)):
            mlflow.log_artifact(str(path))
        for name, svg in figures(evidence).items():
            mlflow.log_text(svg, f"figures/{name}.svg")
        tables = {"grid": evidence.grid, "transfer": evidence.transfer_grid, "predictions": evidence.predictions}
        for name, frame in tables.items():
            mlflow.log_text(frame.to_csv(index=False), f"tables/{name}.csv")  # the UI shows CSV, not Parquet
        return log_model(cell) if with_model else ""


def _check(cell: Cell, version: int) -> None:
    """Loads the registered version and compares its answers with those of `evaluate`."""
    import pandas as pd

    rows = pd.read_parquet(cell.predictions).head(CHECKED)
    check_answers(cell, version, probabilities(cell.name, version, rows, options_of(cell, rows)), rows)


def _description(cell: Cell) -> str:
    judgement = verdict(read_json(cell.pruned), read_json(cell.evaluation))
    return f"{judgement.headline}. {judgement.sentence} {judgement.control}"


def _flow_tags() -> dict[str, str]:
    """Id and name of the flow run that this step is part of; empty outside a flow."""
    flow_run, _, name = os.environ.get(FLOW, "").partition(" ")
    return {"flow_run_id": flow_run, "flow_run_name": name} if flow_run else {}
