"""Clocks that jump and files with times of another century: nothing runs again, and no stale file is used."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.pipeline.step import _alive
from tasks.runtime.journal import Journal
from tests.faults.fault_project import write_sources
from tests.faults.kills import environment, results
from tests.flows.stand_in_project import REAL, dvc, ran

TIMES = {"1999-01-01": 915_148_800, "2040-01-01": 2_208_988_800}


def at(date: str, root: Path, *arguments: str) -> str:
    """Runs Python in the project with the system's clock at `date`; returns its stdout."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime is not installed (Debian package faketime)")
    # A jump moves the wall clock alone: not the monotonic one, nor the times of the files that are there.
    clock = {"NO_FAKE_STAT": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    argv = [faketime, "-f", f"@{date} 00:00:00", sys.executable, *arguments]
    done = subprocess.run(argv, cwd=root, env=environment(root) | clock, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def touch(root: Path, seconds: int) -> None:
    for path in root.rglob("*"):
        if ".dvc" not in path.parts and path.is_file():
            os.utime(path, (seconds, seconds))


def test_files_of_another_century_are_the_same_files(finished_stand_ins: Path) -> None:
    project = finished_stand_ins
    before = results(project)
    for seconds in TIMES.values():
        touch(project, seconds)
        dvc(project, "repro")
        assert ran(project) == []
        assert results(project) == before


def test_a_change_is_seen_whatever_its_time(finished_stand_ins: Path) -> None:
    project = finished_stand_ins
    path = project / "stand_in.py"
    for seconds in TIMES.values():
        path.write_text(path.read_text() + "#")
        os.utime(path, (seconds, seconds))
        dvc(project, "repro", "--single-item", "data@reviews")
        assert ran(project) == ["data"]


def test_dvc_under_another_clock(finished_stand_ins: Path) -> None:
    project = finished_stand_ins
    for date in TIMES:
        at(date, project, "-P", "-m", "dvc", "repro")
        assert ran(project) == []
        (project / "data" / "cells" / "tiny" / "reviews" / "report.html").unlink()
        assert "is cached" in at(date, project, "-P", "-m", "dvc", "repro", "report@tiny-reviews")


@pytest.mark.real
@pytest.mark.slow
def test_a_step_writes_the_same_bytes_under_another_clock(tmp_path: Path) -> None:
    root = write_sources(tmp_path / "project").root
    for package in ("tasks", "flows"):
        (root / package).symlink_to(REAL / package)
    found = []
    for date in TIMES:
        at(date, root, "-m", "tasks.steps.data")
        at(date, root, "-m", "tasks.steps.model")
        found.append(results(root))
    assert len(found[0]) > 4
    assert found[0] == found[1]


def test_a_journal_goes_on_under_another_clock(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, "key").put("0", 1.5)
    code = "import sys; from pathlib import Path; from tasks.runtime.journal import Journal as J; "
    code += "j = J(Path(sys.argv[1]), 'key'); j.put(sys.argv[2], 2); print(sorted(j.parts))"
    (tmp_path / "tasks").symlink_to(REAL / "tasks")
    for number, (date, seconds) in enumerate(TIMES.items(), start=1):
        os.utime(path, (seconds, seconds))
        said = at(date, tmp_path, "-c", code, str(path), str(number))
        assert said == f"{[str(i) for i in range(number + 1)]}\n"


def test_a_step_does_not_take_its_parent_for_dead_when_the_clock_jumps(tmp_path: Path) -> None:
    """The watch compares start times of processes, which must not be computed from a clock that can jump."""
    import psutil

    parent = psutil.Process(os.getppid())
    assert _alive(parent)
    with pytest.MonkeyPatch.context() as patch:
        boot = psutil.boot_time()
        patch.setattr("psutil._pslinux.boot_time", lambda: boot + 1e6)
        assert _alive(parent)


def test_no_code_reads_the_wall_clock() -> None:
    """Durations and timeouts come from time.monotonic, and nothing is decided by a date.

    Three places only write one down: the lines of a served run, the record of a promotion, and the samples of the
    machine's use.
    """
    found = []
    for path in [*(REAL / "flows").rglob("*.py"), *(REAL / "tasks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                if name in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"):
                    found.append(f"{path.relative_to(REAL)} {name}")
    assert sorted(found) == [
        "flows/environment.py datetime.now",
        "flows/run_states.py datetime.now",  # the day in the name of a run
        "tasks/runtime/usage.py time.time",
        "tasks/tracking/record.py datetime.now",  # the same
        "tasks/tracking/store.py datetime.now",
    ]
