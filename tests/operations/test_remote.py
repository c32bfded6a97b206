"""Results shared over a DVC remote: another machine pulls them and computes nothing again."""

import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.environment import child_environment
from flows.plan import make_plan
from tasks.pipeline.cell import open_cell
from tasks.runtime.files import sha256_file
from tasks.steps.data import store as data
from tasks.steps.model import store as model
from tasks.steps.report import report
from tests.cells import settings
from tests.flows.stand_in_project import REAL, cell_project, dvc, ran
from tests.servers import free_port, s3_server
from tests.steps.test_steps import STEPS, write_project

KEYS = {"access_key_id": "someone", "secret_access_key": "not-for-git"}


def git(root: Path, *arguments: str) -> str:
    argv = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def under_git(root: Path) -> Path:
    """Gives a project the repository's own settings of DVC and git, and commits it."""
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(REAL / name, root / name)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "Start")
    return root


def clone(root: Path, where: Path) -> Path:
    git(root, "add", "-A")
    git(root, "commit", "-qm", "Share")
    git(root, "clone", "-q", str(root), str(where))
    return where


def hashes(root: Path) -> dict[str, str]:
    files = [path for path in (root / "data").rglob("*") if path.is_file() and "scratch" not in path.parts]
    return {str(path.relative_to(root)): sha256_file(path) for path in files if path.name != ".gitignore"}


def fails(root: Path, *arguments: str) -> list[str]:
    """Runs a dvc command that must fail; returns its error lines."""
    argv = [sys.executable, "-P", "-m", "dvc", *arguments]
    done = subprocess.run(argv, cwd=root, env=child_environment(), capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the real stages and their code, computed for a tiny model, in git, not pushed."""
    root = tmp_path_factory.mktemp("computed") / "project"
    root.mkdir()
    write_project(root)
    params = yaml.safe_load((root / "params.yaml").read_text())
    (root / "params.yaml").write_text(yaml.safe_dump({"precision": settings()["precision"]} | params))
    shutil.copy(REAL / "dvc.yaml", root)
    shutil.copytree(REAL / "tasks", root / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    cell = open_cell(root=root)
    for step in (model, data, *STEPS, report):
        step(cell)
    under_git(root)
    dvc(root, "commit", "--force")  # what `dvc repro` would have written into dvc.lock and the cache
    git(root, "add", "--force", "dvc.lock")  # for a team; without the other lines, which name a remote
    return root


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 service with the bucket `results`."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        bucket = urllib.request.Request(f"{server.address}/results", method="PUT")
        urllib.request.urlopen(bucket, timeout=30).close()
        yield server.address


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hides this machine's credentials, and disables the query of a cloud's metadata address."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@pytest.mark.parametrize("kind", ["directory", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_clone_computes_nothing_again(
    request: pytest.FixtureRequest, computed: Path, tmp_path: Path, no_keys: None, kind: str
) -> None:
    project = tmp_path / "project"
    shutil.copytree(computed, project)
    keys = []
    if kind == "directory":
        dvc(project, "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    else:
        dvc(project, "remote", "add", "--default", "shared", "s3://results/dsm")
        dvc(project, "remote", "modify", "shared", "endpointurl", request.getfixturevalue("s3"))
        keys = [("remote", "modify", "--local", "shared", name, value) for name, value in KEYS.items()]
    for arguments in keys:
        dvc(project, *arguments)
    assert "files pushed" in dvc(project, "push")
    assert dvc(project, "push") == "Everything is up to date.\n"

    other = clone(project, tmp_path / "other")
    assert not (other / "data").exists()
    assert KEYS["secret_access_key"] not in git(other, "grep", "-h", "", "HEAD", "--", ".dvc")
    for arguments in keys:
        dvc(other, *arguments)
    dvc(other, "pull")
    assert hashes(other) == hashes(project)
    assert len(hashes(other)) > 12
    assert dvc(other, "status") == "Data and pipelines are up to date.\n"
    plan = make_plan(open_cell(root=other))
    assert {line.does for line in plan.lines} == {"cached", "check"}  # `register` always looks
    said = dvc(other, "repro")
    assert "Running stage" not in said
    assert said.count("didn't change, skipping") == 9
    assert git(other, "status", "--porcelain") == ""


def test_the_run_cache_brings_back_what_is_in_no_commit(tmp_path: Path) -> None:
    """The results of settings that were tried and abandoned are available to a clone that tries them again.

    Pushed at the time: of later pushes, `--run-cache` takes the list of all runs along, but not their outputs.
    """
    project = under_git(cell_project(tmp_path / "project"))
    (project / ".gitignore").write_text("/data/*\n/metrics/\n/ran.txt\n")
    kept = (project / "params.yaml").read_text()
    tried = kept.replace("control_seeds:\n  - 0\n", "control_seeds:\n  - 7\n")
    assert tried != kept
    made = project / "made/data/cells/tiny/reviews/predictions.parquet"
    dvc(project, "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    for params, content in ((tried, b"tried"), (kept, b"kept")):
        (project / "params.yaml").write_text(params)
        made.write_bytes(content)
        dvc(project, "repro")
        dvc(project, "push", "--run-cache")
    assert ran(project).count("evaluate") == 2

    other = clone(project, tmp_path / "other")
    predictions = other / "data/cells/tiny/reviews/predictions.parquet"
    dvc(other, "pull", "--run-cache")
    assert predictions.read_bytes() == b"kept"
    (other / "params.yaml").write_text(tried)
    said = dvc(other, "repro", "--pull")
    assert predictions.read_bytes() == b"tried"
    assert "Stage 'evaluate@tiny-reviews' is cached - skipping run" in said
    assert ran(other) == []


@pytest.fixture
def emptied(computed: Path, tmp_path: Path, no_keys: None) -> Path:
    """A clone without data, whose remote is not set yet."""
    project = tmp_path / "project"
    git(computed, "clone", "-q", str(computed), str(project))
    return project


def test_an_empty_remote_is_told(emptied: Path, tmp_path: Path) -> None:
    (last,) = fails(emptied, "push")
    assert "no remote specified" in last
    dvc(emptied, "remote", "add", "--default", "shared", str(tmp_path / "wrong"))
    errors = fails(emptied, "pull")
    assert "Checkout failed" in errors[-1]
    assert not list(emptied.glob("data/cells/*/*/*.parquet"))


def test_an_unreachable_service_is_told(emptied: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    dvc(emptied, "remote", "add", "--default", "shared", "s3://results/dsm")
    dvc(emptied, "remote", "modify", "shared", "endpointurl", address)
    for name, value in KEYS.items():
        dvc(emptied, "remote", "modify", "--local", "shared", name, value)
    first, last = fails(emptied, "pull")
    assert f'Could not connect to the endpoint URL: "{address}/' in first
    assert "failed to pull data from the cloud" in last


def test_missing_keys_and_a_missing_bucket_are_told(computed: Path, tmp_path: Path, no_keys: None, s3: str) -> None:
    project = tmp_path / "project"
    shutil.copytree(computed, project)
    dvc(project, "remote", "add", "--default", "shared", "s3://elsewhere/dsm")
    dvc(project, "remote", "modify", "shared", "endpointurl", s3)
    (error,) = fails(project, "push")
    assert "Unable to locate credentials" in error
    for name, value in KEYS.items():
        dvc(project, "remote", "modify", "--local", "shared", name, value)
    (error,) = fails(project, "push")
    assert "bucket does not exist" in error
