"""The environment variables of the processes that a flow starts."""

import os
import sys
from datetime import datetime
from pathlib import Path

from flows.places import check_places
from tasks.runtime.errors import InputError

# No telemetry from these processes.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

TIMEOUT = "DSM_STEP_TIMEOUT"
SERVED = "DSM_SERVED"  # set by `dsm serve` for itself and the runs that it starts
HEARTBEAT = 30  # seconds between two heartbeats of a flow run; Prefect's minimum


def operated() -> dict[str, str]:
    """The environment variables of every flow run, including runs that a worker starts."""
    return QUIET | {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT)}


def prepare(*, places: bool = True) -> None:
    """Sets the variables that Prefect reads when it is imported, unless the caller's environment has them.

    Prefect's server gets the complete log of the run. The terminal shows only the flow's own lines.

    Args:
        places: check the directories that a run writes to.

    Raises:
        InputError: one of these directories cannot be used.
    """
    if places:
        check_places(Path.cwd())
    for name, value in operated().items():
        os.environ.setdefault(name, value)
    for handler in ("CONSOLE", "DEBUG"):
        os.environ.setdefault(f"PREFECT_LOGGING_HANDLERS_{handler}_LEVEL", "CRITICAL")
    if not os.environ.get("PREFECT_API_URL"):
        os.environ.pop("PREFECT_API_URL", None)
        os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
        # The first start on a machine creates the database, which can take longer than Prefect's default of 20 seconds.
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


def child_environment() -> dict[str, str]:
    """The environment of `dvc` and the steps that it runs.

    The `python` of dvc.yaml must be this interpreter, even if its virtual environment is not activated. DSM_FLOW_PID is
    the process that a step watches: see `tasks.pipeline.step`.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**QUIET, **os.environ, "PATH": path, "DSM_FLOW_PID": str(os.getpid())}


def stamp(cell: str = "") -> str:
    """The time and the cell's name, to begin a line of an unattended run with; empty for other runs.

    Prefect names the run in the environment of the processes that `dsm serve` and its workers start.
    """
    if not (os.environ.get(SERVED) or os.environ.get("PREFECT__FLOW_RUN_ID")):
        return ""
    return f"{datetime.now():%Y-%m-%d %H:%M:%S} {f'{cell} ' if cell else ''}"


def step_timeout() -> float:
    """Seconds that one step may take: the variable DSM_STEP_TIMEOUT; by default a day.

    Raises:
        InputError: the variable is not a positive number.
    """
    text = os.environ.get(TIMEOUT, "86400")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(TIMEOUT, f"must be a positive number of seconds, not {text!r}")
    return seconds
