"""Starting real processes on a project, ending them at a random moment, and looking at what they left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from mlflow import MlflowClient

from flows.environment import child_environment
from tasks.runtime.files import sha256_file
from tasks.tracking.store import EXPERIMENT, tracking_uri
from tests.faults.fault_project import NAME

DVC = ("-P", "-m", "dvc")
DSM = ("-c", "from flows.cli import app; app()")
GRACE = 60.0  # seconds after which all started processes must have ended


def environment(root: Path) -> dict[str, str]:
    """The environment of a terminal in the project; Prefect's files and temporary files are beside the project."""
    (root.parent / "tmp").mkdir(exist_ok=True)
    places = {"PREFECT_HOME": str(root.parent / "prefect"), "TMPDIR": str(root.parent / "tmp")}
    found = {**child_environment(), **places, "PYTHONPATH": str(root)}
    del found["DSM_FLOW_PID"]
    return found


def start(root: Path, *arguments: str, said: str = "out.txt") -> "subprocess.Popen[bytes]":
    """Starts Python with these arguments in the project, in a session of its own; its output goes to a file there."""
    with (root / said).open("wb") as out:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=root,
            env=environment(root),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(root: Path, *arguments: str, timeout: float = 240) -> str:
    """Runs to the end, which must succeed; returns the output."""
    process = start(root, *arguments)
    try:
        code = process.wait(timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    text = (root / "out.txt").read_text(errors="replace")
    assert code == 0, text
    return text


def ours(root: Path) -> list[psutil.Process]:
    """The running processes whose working directory is the project, anywhere in the process tree."""
    found = []
    for process in psutil.process_iter():
        try:
            living = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if living and Path(process.cwd()).is_relative_to(root):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def all_gone(root: Path, seconds: float = GRACE) -> bool:
    """Whether every process of the project ends within `seconds`."""
    give_up = time.monotonic() + seconds
    while found := ours(root):
        if time.monotonic() > give_up:
            print("still there:", [process.cmdline() for process in found])
            return False
        time.sleep(0.1)
    return True


def step_process(root: Path, seconds: float = 60) -> psutil.Process | None:
    """The step that runs in the project, as soon as there is one; None if everything ends before that."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        processes = ours(root)
        for process in processes:
            try:
                words = process.cmdline()
                if words[1:2] == ["-m"] and words[2].startswith("tasks."):
                    return process
            except (psutil.Error, IndexError):
                continue
        if not processes:
            return None
        time.sleep(0.05)
    raise AssertionError("no step was started")


def kill_after(process: "subprocess.Popen[bytes] | psutil.Process", seconds: float, number: int) -> bool:
    """Sends the signal unless the process has ended; returns whether it was sent."""
    try:
        process.wait(seconds)
        return False
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        process.send_signal(number)
        return True


def results(root: Path) -> dict[str, str]:
    """SHA-256 of every output of the project, by its path."""
    places = [root / "data" / name for name in ("models", "benchmarks", "cells")]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): sha256_file(path) for path in files}


def locked(root: Path) -> dict[str, Any]:
    """The entry of every stage in dvc.lock."""
    stages: dict[str, Any] = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return stages


def leftovers(root: Path) -> list[str]:
    """Files that must not remain: scratch directories, half-written files, journals of finished steps."""
    found = [path for path in (root / "data").rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    found += (root / "data" / "scratch").rglob("*.jsonl")
    found += [path for path in (root / ".dvc" / "cache" / "files").rglob("*") if path.suffix == ".tmp"]
    return sorted(str(path.relative_to(root)) for path in found)


def forget(root: Path, stage: str) -> None:
    """Makes DVC forget that it ran the stage; otherwise it would restore the outputs instead of computing them."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    entry = lock["stages"].pop(stage)
    (root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    cache = root / ".dvc" / "cache"
    subprocess.run(["rm", "-rf", str(cache / "runs")], check=True)
    for out in entry["outs"]:
        subprocess.run(["rm", "-rf", str(root / out["path"])], check=True)
        (cache / "files" / "md5" / out["md5"][:2] / out["md5"][2:]).unlink(missing_ok=True)


def assert_registered_once(root: Path) -> None:
    """Checks that MLflow has one finished run, one model and one version of the cell, with the alias."""
    client = MlflowClient(tracking_uri(root), tracking_uri(root))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    assert version.run_id == run.info.run_id
    assert client.get_model_version_by_alias(NAME, "challenger").version == version.version
    assert len(client.search_logged_models([experiment.experiment_id])) == 1
