"""A whole life on real servers: a schedule fires by itself, new rows make a challenger, a rollback, dead runs end."""

import json
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
import pytest
import yaml
from mlflow import MlflowClient

from flows.environment import QUIET
from tasks.pipeline.files import read_json, sha256_file, write_text
from tests.faults.project import NAME, real_project
from tests.servers import Server, environment, free_port

PATIENCE = 900.0  # seconds until a run that is due has ended, on a busy machine
DSM = [sys.executable, "-c", "from flows.cli import app; app()"]


class Operated:
    """A project with a schedule of every minute, and the servers it is operated on."""

    def __init__(self, root: Path, prefect: str, tracking: str):
        self.root = root
        self.client = MlflowClient(tracking, tracking)
        self._api = f"{prefect}/api"
        self.environment = environment(
            PREFECT_API_URL=self._api,
            PREFECT_HOME=str(root.parent / "prefect"),
            MLFLOW_TRACKING_URI=tracking,
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
        """A process that works until the end of the context, with what it starts."""
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
        """The runs of a flow in one of these states, those that started first first."""
        body = {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"state": {"type": {"any_": list(states)}}}}
        found = httpx.post(f"{self._api}/flow_runs/filter", json=body, timeout=30).raise_for_status().json()
        return sorted(found, key=lambda run: run["start_time"] or "")

    def task_runs(self, flow_run: str) -> dict[str, str]:
        """The names of the task runs of a flow run, and of their states."""
        body = {"flow_runs": {"id": {"any_": [flow_run]}}, "limit": 200}
        found = httpx.post(f"{self._api}/task_runs/filter", json=body, timeout=30).raise_for_status().json()
        return {run["name"]: run["state_name"] for run in found}

    def pause(self, paused: bool) -> None:
        body: dict[str, Any] = {"flows": {"name": {"any_": ["retrain"]}}}
        (deployment,) = httpx.post(f"{self._api}/deployments/filter", json=body, timeout=30).raise_for_status().json()
        what = "pause_deployment" if paused else "resume_deployment"
        httpx.post(f"{self._api}/deployments/{deployment['id']}/{what}", timeout=30).raise_for_status()

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


@pytest.fixture
def operated(tmp_path: Path, tracking: Server) -> Iterator[Operated]:
    root = real_project(tmp_path / "project").root
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["retrain"] = {
        "schedules": {"minutely": {"cron": "* * * * *"}},
        # Twelve rows of a random model: nothing is detectable, and the rule must say yes and no all the same.
        "promotion": {"alpha": 1.0, "margin": 0.9},
    }
    write_text(root / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    home = str(tmp_path / "prefect")
    server = Server(command, port=port, alive="/api/health", where=tmp_path, PREFECT_HOME=home, **QUIET)
    try:
        yield Operated(root, server.address, tracking.address)
    finally:
        server.end()


def locked(root: Path) -> dict[str, str]:
    """The hashes of all outputs in dvc.lock."""
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def in_project(root: Path) -> list[psutil.Process]:
    """The processes whose working directory is the project's."""
    found = []
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(root) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.real
@pytest.mark.timeout(3000)
def test_from_the_first_scheduled_run_to_a_rollback(operated: Operated) -> None:
    root, client = operated.root, operated.client
    assert "deployment retrain/minutely: * * * * * UTC" in operated.dsm("deploy")

    # A run fires by itself, and ends with a registered challenger.
    with operated.worker():
        first = operated.wait("the first run", lambda: operated.runs("COMPLETED"))[0]
        operated.pause(True)
    assert first["auto_scheduled"]
    steps = operated.task_runs(operated.runs("COMPLETED", flow="adapt")[0]["id"])
    assert steps["score tiny-reviews"] == "Ran"
    assert steps["register tiny-reviews"] == "Completed"
    version = client.get_model_version_by_alias(NAME, "challenger")
    assert int(version.version) == 1
    run = client.get_run(version.run_id)
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", first["name"])
    assert any(name.startswith("system/") for name in run.data.metrics)
    reason = version.tags["reason"]
    assert reason.startswith("no champion yet; ")
    if "not detectably better" in reason:
        operated.dsm("promote", "1", "--why", "a first champion, to have one")
    assert operated.aliases() == {"challenger": 1, "champion": 1}

    # New rows: the next run takes them, and the rule decides.
    before = sha256_file(root / "reviews.jsonl")
    rows = [json.dumps({"text": f"good warm film {i}", "label": i % 2}) + "\n" for i in range(100, 112)]
    write_text(root / "reviews.jsonl", (root / "reviews.jsonl").read_text() + "".join(rows))
    operated.pause(False)
    with operated.worker():
        operated.wait(
            "the second version to be judged",
            lambda: [v for v in client.search_model_versions(f"name = '{NAME}'") if v.tags.get("reason")][1:],
        )
        done = operated.wait("its run to end", lambda: operated.runs("COMPLETED")[1:])
        operated.pause(True)
    assert done
    pinned = yaml.safe_load((root / "params.yaml").read_text())["benchmarks"]["reviews"]["train"]["source"]["sha256"]
    assert pinned == sha256_file(root / "reviews.jsonl") != before
    decision = read_json(
        Path(client.download_artifacts(client.get_model_version(NAME, "2").run_id, "promotion.json", str(root.parent)))
    )
    assert decision["rule"] == {"alpha": 1.0, "margin": 0.9}
    assert decision["champion"] == 1
    assert operated.aliases() == {"challenger": 2, "champion": 2 if decision["promoted"] else 1}

    # Back, by one command, on record.
    now = operated.aliases()["champion"]
    operated.dsm("promote", str(3 - now), "--why", "a try")
    told = operated.dsm("versions")
    assert f"champion {now} -> {3 - now}, by " in told
    assert ": a try" in told

    # What is due and has nothing new to do runs nothing; a dead run does not stay `Running`.
    hashes = locked(root)
    operated.pause(False)
    with operated.worker() as worker:
        running = operated.wait("a run to kill", lambda: operated.runs("RUNNING"))[0]
        processes = operated.wait("its process", lambda: [p for p in in_project(root) if p.pid != worker.pid])
        operated.pause(True)
        for process in [worker, *processes]:
            os.kill(process.pid, signal.SIGKILL)
        crashed = operated.wait("the server to notice", lambda: operated.runs("CRASHED"))
    assert running["id"] in [run["id"] for run in crashed]
    for flow in ("retrain", "retrain cell", "adapt"):
        operated.wait(f"no {flow} to be left running", lambda flow=flow: not operated.runs("RUNNING", flow=flow))
    operated.pause(False)
    ended = len(operated.runs("COMPLETED"))
    with operated.worker():
        operated.wait("the run after it", lambda: operated.runs("COMPLETED")[ended:])
        operated.pause(True)
    assert locked(root) == hashes
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2
    assert operated.aliases()["champion"] == 3 - now
    until = time.monotonic() + 60
    while in_project(root) and time.monotonic() < until:
        time.sleep(1)
    assert in_project(root) == []


@pytest.mark.real
@pytest.mark.timeout(3000)
def test_serve_fires_a_run_by_itself_and_ends_with_its_children(operated: Operated) -> None:
    with operated.process(*DSM, "serve") as served:
        (run, *_) = operated.wait("a scheduled run under `dsm serve`", lambda: operated.runs("COMPLETED"))
        operated.pause(True)
        assert run["auto_scheduled"]
        assert operated.aliases()["challenger"] == 1
        operated.wait("the last run to end", lambda: not operated.runs("RUNNING", "PENDING"))
        served.send_signal(signal.SIGINT)
        served.wait(60)
    until = time.monotonic() + 60
    while in_project(operated.root) and time.monotonic() < until:
        time.sleep(0.5)
    assert not in_project(operated.root)
