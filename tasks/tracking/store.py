"""The model registry: its address, the answers of a version, and the versions that aliases name.

A version is never changed. An alias is moved to it at the end, after the version was loaded and its answers compared.
"""

import getpass
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from scipy.special import softmax

from tasks.benchmarks.templates import fixed_options
from tasks.pipeline.cell import Cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json
from tasks.tracking.database import check_path, make_database, reporting_store_errors, sqlite_uri

EXPERIMENT = "dsm-pruning"
CHALLENGER = "challenger"
CHAMPION = "champion"
CONTENT = "content"  # tag of a run and of a model version: hash of its content
PROMOTION = "promotion."  # prefix of the tags of a registered model, one for each move of its champion
FLOW = "DSM_FLOW_RUN"  # environment variable: id and name of the flow run that this step is part of
# For a probability, by the precision of `evaluate`. A registered model computes in float32, which differs by batch.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
# Variables by which a caller such as `mlflow run` passes its own run to MLflow. Our runs do not belong to that run.
OF_THE_CALLER = (
    "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_CONTEXT", "MLFLOW_ACTIVE_MODEL_ID",
    "_MLFLOW_ACTIVE_MODEL_ID", "MLFLOW_ENABLE_ASYNC_LOGGING", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
)  # fmt: skip


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if set, else an SQLite database in the project's directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri((root / "mlflow.db").resolve())


@contextmanager
def store(root: Path) -> Iterator[tuple[Any, str]]:
    """A client and the experiment's id, for one process at a time: two that create a database would damage it.

    The lock does not hold for other machines that use the same tracking server; see `tasks.tracking.record`.

    Raises:
        InputError: the tracking server or the database cannot be used, or it failed in the body.
    """
    check_path(root.resolve())
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # with pauses of 1, 2 and 4 seconds
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with FileLock(root / "mlflow.db.lock"), _apart_from_the_caller():
        import mlflow

        uri = tracking_uri(root)
        with reporting_store_errors(uri, "cannot be used"):
            make_database(uri)
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
            client = mlflow.MlflowClient()
            experiment = _experiment(client, root, uri)
        with reporting_store_errors(
            uri, "failed midway; what it has stored is kept, and the next call continues from there"
        ):
            yield client, experiment


@contextmanager
def _apart_from_the_caller() -> Iterator[None]:
    """Hides run, experiment, model and store of the caller from MLflow, and restores them at the end."""
    hidden = {name: os.environ.pop(name) for name in OF_THE_CALLER if name in os.environ}
    import mlflow

    stores = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ[name] for name in stores if name in os.environ}
    own = mlflow.is_tracking_uri_set() or mlflow.active_run() is not None  # type: ignore[no-untyped-call]
    tracking = (mlflow.get_tracking_uri() or before.get("MLFLOW_TRACKING_URI", "")) if own else ""
    registry = mlflow.get_registry_uri() if own else ""
    if registry == tracking:  # the registry follows the tracking store, as by default
        registry = ""
    try:
        yield
    finally:
        if own:  # a process that had no store keeps ours
            mlflow.set_tracking_uri(tracking)
            mlflow.set_registry_uri(registry)
        for name in stores:  # MLflow sets these too, and `tracking_uri` of another project reads them
            os.environ.pop(name, None)
        os.environ.update(before | hidden)


def _experiment(client: Any, root: Path, uri: str) -> str:
    """The id of the experiment, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(EXPERIMENT)
    if not known:
        where = (root / "mlartifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
        try:
            return str(client.create_experiment(EXPERIMENT, artifact_location=where))
        except MlflowException:
            known = client.get_experiment_by_name(EXPERIMENT)
            if not known:  # another machine did not create it either
                raise
    return str(known.experiment_id)


class OtherOptions(InputError):
    """A version was made for other options than those of the rows."""


def options_of(cell: Cell, rows: pd.DataFrame) -> list[list[str]]:
    """The options of each of these test rows, found by `id`."""
    if fixed := fixed_options(cell.benchmark_spec):
        return [list(fixed)] * len(rows)
    of_row = pd.read_parquet(cell.test).set_index("id")["options"]
    return [list(of_row[name]) for name in rows["id"]]


def probabilities(name: str, version: int, rows: pd.DataFrame, options: list[list[str]]) -> list[np.ndarray]:
    """Loads a registered version and returns its probability of each option of each row.

    Args:
        rows: test rows with `prompt`.
        options: the list of options of each row; must equal the version's own options if it has any.

    Returns:
        For each row float64 [options], with sum 1.

    Raises:
        OtherOptions: the version was made for other options.
        InputError: it cannot be loaded, or cannot answer one of the rows.
    """
    import mlflow

    path = list(sys.path)
    try:
        loaded = mlflow.pyfunc.load_model(f"models:/{name}/{version}")
    finally:
        sys.path[:] = path  # MLflow inserts the version's own code
    model, prompts = loaded.unwrap_python_model(), rows["prompt"].tolist()
    own = loaded.model_config["options"]
    if own is None:
        return [np.array(p, dtype=np.float64) for p in model.answer(prompts, options)["p"]]
    if other := next((row for row in options if row != own), None):
        raise OtherOptions(f"version {version} of {name}", f"answers {own}, but the test rows now have {other}")
    return list(model.answer(prompts).drop(columns="option").to_numpy(dtype=np.float64))


def check_answers(cell: Cell, version: int, answers: list[np.ndarray], rows: pd.DataFrame) -> None:
    """Compares a version's answers with `pruned_logprobs` of predictions.parquet.

    Raises:
        InputError: a probability differs by more than TOLERANCE.
    """
    tolerance = TOLERANCE[read_json(cell.evaluation)["precision"]["precision"]]
    for row, answer, written in zip(rows["id"], answers, rows["pruned_logprobs"], strict=True):
        expected = softmax(np.array(written, dtype=np.float64))
        if not (np.abs(answer - expected) <= tolerance).all():
            raise InputError(
                f"version {version} of {cell.name}",
                f"answers row {row} with {answer.round(4)}, not {expected.round(4)}; no alias was moved. "
                "Are the cell's files up to date (dvc status)?",
            )


@dataclass(frozen=True)
class Move:
    """One move of the alias `champion`.

    Attributes:
        when: ISO 8601, UTC.
        before, after: version numbers; before is None for the first champion.
        by_rule: whether the rule decided, not a person.
    """

    when: str
    before: int | None
    after: int
    who: str
    why: str
    by_rule: bool


def move_champion(client: Any, name: str, version: int, why: str, *, by_rule: bool) -> None:
    """Points `champion` at a version. The record is written first, so that no move is without one."""
    aliases = client.get_registered_model(name).aliases
    now = datetime.now(UTC)
    record = {
        "when": now.isoformat(timespec="seconds"),
        "before": int(aliases[CHAMPION]) if CHAMPION in aliases else None,
        "after": version,
        "who": f"{getpass.getuser()}@{socket.gethostname()}",
        "why": why,
        "by_rule": by_rule,
    }
    client.set_registered_model_tag(name, f"{PROMOTION}{now:%Y%m%dT%H%M%S.%fZ}", json.dumps(record))
    client.set_registered_model_alias(name, CHAMPION, str(version))


def moves(client: Any, name: str) -> list[Move]:
    """Every move of `champion`, oldest first."""
    tags = client.get_registered_model(name).tags
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(PROMOTION)]
