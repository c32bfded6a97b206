"""A project in git: a run adds nothing to it, a team adds files with the commands of docs/operations.md."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from flows.stages import STEPS
from tests.faults.fault_project import real_project
from tests.faults.kills import DSM, finish
from tests.flows.stand_in_project import REAL, cell_project, dvc, ran
from tests.operations.test_remote import git, hashes, under_git

STAGES = len(STEPS)


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A repository with the stages and files of this one and stand-ins for the steps; nothing has run."""
    root = cell_project(tmp_path / "upstream")
    (root / "docs").mkdir()
    (root / "docs" / "page.md").write_text("a page\n")
    under_git(root)
    with (root / ".git" / "info" / "exclude").open("a") as file:
        file.write("/ran.txt\n")
    return root


def cloned(repository: Path, where: Path) -> Path:
    git(repository.parent, "clone", "-q", str(repository), str(where))
    with (where / ".git" / "info" / "exclude").open("a") as file:
        file.write("/ran.txt\n")
    return where


def commit(root: Path, message: str, *paths: str) -> None:
    git(root, "add", *paths)
    git(root, "commit", "-qm", message)


def documented(root: Path, remote: Path) -> None:
    """Runs the commands of docs/operations.md with which a team shares its results."""
    blocks = re.findall(r"```\w*\n(.*?)```\n", (REAL / "docs" / "operations.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "--unset core.no_scm" in block]
    for line in block.replace("/srv/dsm", str(remote)).splitlines():
        command, *arguments = shlex.split(line)
        if command == "sed":
            subprocess.run(["sed", *arguments], cwd=root, check=True)
        else:
            {"git": git, "dvc": dvc}[command](root, *arguments)


def test_a_run_leaves_the_tree_clean_and_an_upgrade_merges(upstream: Path, tmp_path: Path) -> None:
    mine = cloned(upstream, tmp_path / "mine")
    dvc(mine, "repro")
    assert len(ran(mine)) == STAGES
    assert git(mine, "status", "--porcelain") == ""

    (upstream / "docs" / "page.md").write_text("a better page\n")
    commit(upstream, "Better", "docs")
    git(mine, "pull", "-q")
    assert dvc(mine, "status") == "Data and pipelines are up to date.\n"

    params = (upstream / "params.yaml").read_text()
    (upstream / "params.yaml").write_text(params.replace("control_seeds:\n  - 0\n", "control_seeds:\n  - 7\n"))
    commit(upstream, "Another seed", "params.yaml")
    git(mine, "pull", "-q")
    dvc(mine, "repro")
    # The stand-in gives the same bytes as before, so nothing that reads them runs.
    assert [step for step in ran(mine) if step != "report"] == ["evaluate"]
    assert git(mine, "status", "--porcelain") == ""
    assert "Only supported for Git" in told(mine, "metrics", "diff"), "no_scm costs less than docs/operations.md says"


def told(root: Path, *arguments: str) -> str:
    try:
        return dvc(root, *arguments)
    except subprocess.CalledProcessError as error:
        return str(error.stderr)


@pytest.mark.slow
def test_two_clones_share_results(upstream: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(upstream), str(tmp_path / "team.git"))
    one, remote = cloned(tmp_path / "team.git", tmp_path / "one"), tmp_path / "remote"
    dvc(one, "repro")
    ran(one)
    documented(one, remote)
    assert git(one, "status", "--porcelain") == ""
    assert "no_scm" not in (one / ".dvc" / "config").read_text()

    other = cloned(tmp_path / "team.git", tmp_path / "other")
    dvc(other, "pull")
    assert hashes(other) == hashes(one)
    assert dvc(other, "status") == "Data and pipelines are up to date.\n"
    assert dvc(other, "status", "--cloud") == "Cache and remote 'shared' are in sync.\n"

    params = yaml.safe_load((other / "params.yaml").read_text())
    params["evaluation"]["control_seeds"] = [7]
    (other / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    changed = other / "made" / "data" / "cells" / "tiny" / "reviews" / "evaluation.json"
    changed.write_text(changed.read_text().replace('"n": 60', '"n": 61'))
    dvc(other, "repro")
    assert "evaluate" in ran(other)
    assert "evaluation.json" in dvc(other, "diff")  # without git there is none
    git(other, "checkout", "-q", "made")
    commit(other, "Other seeds", "dvc.lock", "params.yaml")
    assert git(other, "status", "--porcelain") == ""
    dvc(other, "push")
    git(other, "push", "-q")

    git(one, "pull", "-q")
    dvc(one, "pull")
    assert hashes(one) == hashes(other)
    assert "Running stage" not in dvc(one, "repro")
    assert (ran(one), git(one, "status", "--porcelain")) == ([], "")

    # What upstream does meanwhile merges.
    (upstream / "docs" / "page.md").write_text("a better page\n")
    (upstream / ".gitignore").write_text("/notes/\n" + (upstream / ".gitignore").read_text())
    commit(upstream, "Better", "-A")
    git(one, "pull", "-q", "--no-rebase", "--no-edit", str(upstream), "HEAD")
    assert dvc(one, "status") == "Data and pipelines are up to date.\n"
    assert git(one, "status", "--porcelain") == ""


def test_a_broken_dvc_lock_may_be_removed(upstream: Path) -> None:
    """The repair that docs/operations.md describes for users of DVC alone; `dsm run` does it by itself."""
    dvc(upstream, "repro")
    ran(upstream)
    (upstream / "dvc.lock").unlink()
    said = dvc(upstream, "repro")
    assert said.count("is cached - skipping run") == STAGES
    assert ran(upstream) == []


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("prefect_home")
def test_the_first_run_of_a_clone_leaves_its_tree_clean(tmp_path: Path) -> None:
    root = under_git(real_project(tmp_path / "project").root)
    with (root / ".git" / "info" / "exclude").open("a") as file:
        file.write("/out.txt\n")
    finish(root, *DSM, "run", timeout=1100)
    assert (root / "dvc.lock").exists()
    assert git(root, "status", "--porcelain") == ""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (version,) = client.search_model_versions("name = 'tiny-reviews'")
    assert client.get_run(version.run_id).data.tags["git_dirty"] == "false"
