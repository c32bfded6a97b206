"""A full disk under the project, DVC's cache or MLflow's database: one error line, and success once there is space."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.stages import StepFailed, run_stage
from tasks.runtime.errors import InputError
from tests.faults import full_disk
from tests.faults.fault_project import real_project
from tests.faults.kills import leftovers, results
from tests.flows.stand_in_project import REAL, cell_project, ran

SIZE = "24m"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip() or 'no right to'}")
    yield place
    monkeypatch.chdir(tmp_path)  # a disk is busy while a process has its working directory there
    subprocess.run(["umount", str(place)], check=True)


def all_steps(root: Path) -> dict[str, list[tuple[int, int, list[str]]]]:
    """By step: the bytes that were left (-1: enough), the exit code and the error lines of each attempt."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.full_disk"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(REAL)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[tuple[int, int, list[str]]]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_step_on_a_full_disk(disk: Path, finished_root: Path) -> None:
    """Each step with 0 bytes left, then with more, then with enough; all steps in one process, to save their start."""
    root = real_project(disk / "project").root
    found = all_steps(root)
    assert list(found) == list(full_disk.STEPS)
    for step, attempts in found.items():
        (_, last, _) = attempts[-1]
        assert last == 0, attempts
        assert attempts[0][1] == 2, f"{step} wrote where nothing can be written: {attempts}"
        for left, code, lines in attempts:
            if code:
                assert (code, len(lines)) == (2, 1), (step, left, lines)
                assert lines[0].startswith("error: ")
                assert any(word in lines[0] for word in ("No space left", "disk is full", "cannot be read or written"))
    assert results(root) == results(finished_root)
    assert leftovers(root) == []


def refused(stage: str, root: Path) -> str:
    with pytest.raises((StepFailed, InputError)) as told:
        run_stage(stage, root, timeout=120, log=print)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_full_disk_under_the_cache(disk: Path, project: Path) -> None:
    """Results that were computed but could not be stored are not taken for stored."""
    cell_project(project)
    with (project / ".dvc" / "config").open("a") as config:
        config.write(f"[cache]\n    dir = {disk / 'cache'}\n")
    full_disk.fill(0, disk)
    assert "No space left" in refused("data@reviews", project)
    (disk / "ballast").unlink()
    ran(project)
    assert run_stage("data@reviews", project, timeout=120, log=print) == "ran"
    assert ran(project) == ["data"]
    (project / "data" / "benchmarks" / "reviews").unlink()
    assert run_stage("data@reviews", project, timeout=120, log=print) == "restored"


def test_a_full_disk_under_the_whole_project(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = disk / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    cell_project(root)
    for left in (0, 4096, 8192, 12288):
        full_disk.fill(left, disk)
        assert "No space left" in refused("data@reviews", root)
    (disk / "ballast").unlink()
    assert run_stage("data@reviews", root, timeout=120, log=print) in ("ran", "restored")
    assert run_stage("data@reviews", root, timeout=120, log=print) == "cached"
    assert (root / "data" / "benchmarks" / "reviews").read_bytes() == b"data"
