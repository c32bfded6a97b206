"""A tracking server that is down, fails midway, or has several users: nothing is lost or duplicated."""

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tasks.pipeline.cell import Cell, open_cell
from tasks.runtime.errors import InputError
from tasks.steps.register import register
from tests.servers import Postgres, Server, environment, free_port, mlflow_server
from tests.tracking.test_register import NAME, cell, master, store  # noqa: F401
from tests.tracking.test_register import pytestmark as of_mlflow

pytestmark = [*of_mlflow, pytest.mark.slow]
on_a_server = pytest.mark.parametrize("cell", ["server"], indirect=True)


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("data/**/*")) if path.is_file()
    }


def start_register(made: Cell, address: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.steps.register"],
        cwd=made.root, env=environment(MLFLOW_TRACKING_URI=address), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def copy_of(made: Cell, where: Path) -> Cell:
    """The same project in another directory, as on another machine."""
    shutil.copytree(made.root, where, ignore=shutil.ignore_patterns("*.lock"))
    return open_cell(root=where)


def check_registered_once(made: Cell) -> None:
    client, (run,), (version,) = store(made)
    assert run.info.status == "FINISHED"
    assert version.run_id == run.info.run_id
    assert int(client.get_model_version_by_alias(NAME, "challenger").version) == int(version.version)
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


@on_a_server
def test_a_server_that_is_down_is_one_line(cell: Cell) -> None:  # noqa: F811
    address = f"http://127.0.0.1:{free_port()}"
    before, started = files(cell.root), time.monotonic()
    process = start_register(cell, address)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"error: MLFLOW_TRACKING_URI: {address} cannot be used: API request to {address}")
    assert "Connection refused" in line
    assert time.monotonic() - started < 120
    assert files(cell.root) == before


@pytest.mark.parametrize("cell", ["file"], indirect=True)
def test_a_server_that_dies_on_the_way(
    cell: Cell,  # noqa: F811
    postgres: Postgres,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server is killed while a run is logged, which stays `RUNNING`; the call after the restart replaces it."""
    before, port, database = files(cell.root), free_port(), postgres.create("mortal")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with mlflow_server(database, tmp_path / "artifacts", tmp_path, port=port) as server:
        original = mlflow.log_text

        def killed(*arguments: Any, **named: Any) -> None:
            server.kill()
            original(*arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlflow, "log_text", killed)
            with pytest.raises(InputError, match=rf"^MLFLOW_TRACKING_URI: http://127.0.0.1:{port} failed midway"):
                register(cell)
    assert files(cell.root) == before
    with mlflow_server(database, tmp_path / "artifacts", tmp_path, port=port):
        _, (run,), versions = store(cell)
        assert (run.info.status, versions) == ("RUNNING", [])
        register(cell)
        check_registered_once(cell)


@on_a_server
def test_three_processes_at_once(cell: Cell, tracking: Server, tmp_path: Path) -> None:  # noqa: F811
    """Two processes of one project, which wait for each other, and one on another machine, which has no common lock."""
    cells = [cell, cell, copy_of(cell, tmp_path / "other")]
    processes = [start_register(each, tracking.address) for each in cells]
    told = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    said = sorted(out for out, _ in told)
    assert said[:2] == [f"{NAME}: already registered as version 1 (challenger)\n"] * 2
    check_registered_once(cell)


@on_a_server
@pytest.mark.parametrize("moment", ["log_metrics", "register_model"])
def test_another_machine_overtakes(
    cell: Cell,  # noqa: F811
    tmp_path: Path,
    moment: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While the run is logged, the other one logs its own; before the version is made, the other one makes it."""
    other = copy_of(cell, tmp_path / "other")
    original = getattr(mlflow, moment)
    patch = pytest.MonkeyPatch()

    def overtaken(*arguments: Any, **named: Any) -> Any:
        patch.undo()
        with ThreadPoolExecutor(1) as aside:  # MLflow keeps the active run by thread
            aside.submit(register, other).result()
        assert capsys.readouterr().out == f"{NAME}: registered as version 1 (challenger)\n"
        return original(*arguments, **named)

    patch.setattr(mlflow, moment, overtaken)
    register(cell)
    assert capsys.readouterr().out == f"{NAME}: already registered as version 1 (challenger)\n"
    check_registered_once(cell)
