"""A project with a schedule, on a real Prefect server; MLflow's database is a file of the project."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from mlflow import MlflowClient

from tasks.tracking.store import tracking_uri
from tests.faults.fault_project import NAME
from tests.servers import environment

PATIENCE = 900.0  # seconds until a run that is due has ended, on a busy machine
DSM = [sys.executable, "-c", "from flows.cli import app; app()"]


class Operated:
    """A project with one schedule, and its server."""

    def __init__(self, root: Path, prefect: str):
        self.root = root
        self.client = MlflowClient(tracking_uri(root), tracking_uri(root))
        self._api = f"{prefect}/api"
        self.environment = environment(
            PREFECT_API_URL=self._api,
            PREFECT_HOME=str(root.parent / "prefect"),
            PYTHONPATH=str(root),
        )

    def dsm(self, *arguments: str) -> str:
        done = subprocess.run(
            [*DSM, *arguments], cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def process(self, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A process that runs until the end of the context, and its children."""
        with (self.root.parent / "process.log").open("a") as log:
            running = subprocess.Popen(
                command, cwd=self.root, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield running
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGTERM)
                try:
                    running.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(running.pid, signal.SIGKILL)
                    running.wait(60)

    def worker(self) -> Any:
        return self.process(sys.executable, "-m", "prefect", "worker", "start", "--pool", "dsm", "--type", "process")

    def runs(self, *states: str, flow: str = "retrain") -> list[dict[str, Any]]:
        """The runs of a flow in one of these states, by start time."""
        body = {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"state": {"type": {"any_": list(states)}}}}
        found = httpx.post(f"{self._api}/flow_runs/filter", json=body, timeout=30).raise_for_status().json()
        return sorted(found, key=lambda run: run["start_time"] or "")

    def task_runs(self, flow_run: str) -> dict[str, str]:
        """The names of the task runs of a flow run, and of their states."""
        body = {"flow_runs": {"id": {"any_": [flow_run]}}, "limit": 200}
        found = httpx.post(f"{self._api}/task_runs/filter", json=body, timeout=30).raise_for_status().json()
        return {run["name"]: run["state_name"] for run in found}

    def begin(self, flow: str) -> str:
        """A run of a flow that is `Running`, and whose process never sends a heartbeat."""
        with httpx.Client(base_url=self._api, timeout=30) as http:
            made = http.post("/flows/", json={"name": flow}).raise_for_status().json()
            run: str = http.post("/flow_runs/", json={"flow_id": made["id"]}).raise_for_status().json()["id"]
            for state in ("PENDING", "RUNNING"):
                body = {"state": {"type": state}}
                http.post(f"/flow_runs/{run}/set_state", json=body).raise_for_status()
        return run

    def pause(self) -> None:
        """Checks that no run is due any more."""
        self._deployment("pause_deployment")

    def trigger(self) -> None:
        """A run of the deployment that is due now, as if its schedule had fired."""
        self._deployment("create_flow_run")

    def _deployment(self, what: str) -> None:
        body: dict[str, Any] = {"flows": {"name": {"any_": ["retrain"]}}}
        (deployment,) = httpx.post(f"{self._api}/deployments/filter", json=body, timeout=30).raise_for_status().json()
        httpx.post(f"{self._api}/deployments/{deployment['id']}/{what}", json={}, timeout=30).raise_for_status()

    def aliases(self) -> dict[str, int]:
        return {alias: int(version) for alias, version in self.client.get_registered_model(NAME).aliases.items()}

    def log(self) -> str:
        return (self.root.parent / "process.log").read_text()[-6000:]

    def wait(self, what: str, found: Callable[[], Any]) -> Any:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if got := found():
                return got
            assert not (failed := self.runs("FAILED")), f"{failed[0]['state']['message']}\n{self.log()}"
            time.sleep(1)
        raise AssertionError(f"waited too long for {what}: {self.log()}")


def in_project(root: Path) -> list[psutil.Process]:
    """The processes whose working directory is the project's."""
    found = []
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(root) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
