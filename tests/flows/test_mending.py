"""Files that DVC writes in place and that a kill has truncated: DVC refuses to continue, and the flow repairs them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from zc.lockfile import SimpleLockFile

from flows.mending import keep, mend
from flows.stages import run_stage
from tests.flows.stand_in_project import make_project

DVC = [sys.executable, "-P", "-m", "dvc", "repro"]


@pytest.fixture
def root(project: Path, said: list[str]) -> Path:
    """A project in which stage `a` ran, and `b` did not."""
    stages = {name: {"cmd": f"echo {name} > {name}.txt", "outs": [f"{name}.txt"]} for name in "ab"}
    make_project(project, stages)
    assert run_stage("a", project, timeout=60, log=said.append) == "ran"
    return project


def refused(root: Path) -> str:
    finished = subprocess.run(DVC, cwd=root, capture_output=True, text=True)
    assert finished.returncode != 0
    return finished.stderr


@pytest.mark.parametrize("content", [pytest.param("", marks=pytest.mark.slow), '{"write": {"out.txt": {"pid": 1'])
def test_a_broken_file_of_locks_goes(root: Path, said: list[str], content: str) -> None:
    path = root / ".dvc" / "tmp" / "rwlock"
    path.write_text(content)
    assert "JSON structure is corrupted" in refused(root), "DVC mends it by itself: ours can go"
    guard = SimpleLockFile(str(path.with_name("rwlock.lock")))  # as DVC does while it writes
    assert mend(root) == []
    assert path.read_text() == content
    guard.close()
    assert run_stage("b", root, timeout=60, log=said.append) == "ran"
    assert mend(root) == []


@pytest.mark.parametrize("size", [pytest.param(0, marks=pytest.mark.slow), len("schema: '2")])
def test_a_broken_dvc_lock_is_put_back(root: Path, said: list[str], size: int) -> None:
    path = root / "dvc.lock"
    keep(root)
    whole = path.read_bytes()
    cut = whole[:size]
    path.write_bytes(cut)
    assert "dvc.lock" in refused(root), "DVC mends it by itself: ours can go"
    keep(root)  # a broken file is not kept
    guard = SimpleLockFile(str(root / ".dvc" / "tmp" / "lock"))  # as DVC does while it writes
    assert mend(root) == []
    assert path.read_bytes() == cut
    guard.close()
    assert mend(root) == ["dvc.lock"]
    assert path.read_bytes() == whole
    path.write_bytes(cut)
    assert run_stage("a", root, timeout=60, log=said.append) == "cached"
    assert run_stage("b", root, timeout=60, log=said.append) == "ran"
    assert set(yaml.safe_load(path.read_text())["stages"]) == {"a", "b"}


def test_a_dvc_lock_that_is_cut_and_yet_yaml_is_put_back(root: Path) -> None:
    path = root / "dvc.lock"
    keep(root)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"md5: ") + 8])
    keep(root)
    assert mend(root) == ["dvc.lock"]
    assert path.read_bytes() == whole


def test_nothing_is_there_to_mend(tmp_path: Path) -> None:
    keep(tmp_path)
    assert mend(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
