"""The entry point of the steps, as a process: exit codes, and one line for errors that a user can correct."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.runtime.files import sha256_file
from tests.cells import settings

ROOT = Path(__file__).parents[2]


def run(module: str, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings()))
    return tmp_path


def write_rows(project: Path) -> None:
    """90 rows for the benchmark, pinned in params.yaml."""
    rows = "".join(f"row {i},{i % 2}\n" for i in range(90))
    (project / "reviews.csv").write_text("text,label\n" + rows)
    params = settings()
    params["benchmarks"]["reviews"]["train"]["source"]["sha256"] = sha256_file(project / "reviews.csv")
    (project / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.parametrize("step", ["data", "register", "promote"])  # the last two are defined in other modules
def test_a_step_goes_by_the_name_of_its_module(project: Path, step: str) -> None:
    assert run(f"tasks.steps.{step}", project, "--help").stdout.startswith(f"usage: python -m tasks.steps.{step} ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "nobody"], "error: models: 'nobody' is not declared in params.yaml; choose from ['tiny']\n"),
        (
            ["--benchmark", "zzz"],
            "error: benchmarks: 'zzz' is not declared in params.yaml; choose from ['reviews']; "
            "no benchmark 'zzz' in the library; `dsm benchmarks ls` lists all\n",
        ),
    ],
)
def test_an_unknown_name_is_one_line_and_exit_2(project: Path, arguments: list[str], line: str) -> None:
    done = run("tasks.steps.data", project, *arguments)
    assert (done.returncode, done.stderr) == (2, line)
    assert not (project / "data").exists()


def test_a_missing_file_is_one_line_and_exit_2(project: Path) -> None:
    done = run("tasks.steps.data", project)
    assert done.returncode == 2
    assert done.stderr.startswith("error: benchmarks.reviews.train.source.path: no such file or directory: reviews.csv")
    assert done.stderr.count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_line_and_exit_2(project: Path) -> None:
    write_rows(project)
    (project / "data").write_text("a file, where a directory is to be made")
    done = run("tasks.steps.data", project)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_time_it_took_is_written_outside_dvc(project: Path) -> None:
    write_rows(project)
    assert run("tasks.steps.data", project).returncode == 0
    timing = project / "data" / "scratch" / "tiny" / "reviews" / "timings" / "data.json"
    assert json.loads(timing.read_text())["seconds"] >= 0


def test_garbage_is_not_collected_during_imports_but_in_the_step(tmp_path: Path) -> None:
    importing = "import gc, sys; sys.argv = ['-m']; import tasks.steps; print(gc.isenabled())"
    running = "from tasks.pipeline.step import run_main; run_main('it', lambda: print(gc.isenabled()))"
    argv = [sys.executable, "-c", f"{importing}; {running}"]
    done = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]


SLOW = """
import sys, tempfile, time
from pathlib import Path
from tasks.runtime.files import replacing
from tasks.pipeline.step import run_step

def slow(cell):
    with tempfile.TemporaryDirectory() as download, replacing(cell.model_dir) as target:
        Path(download, "wheel").write_text("x")
        target.mkdir()
        print(download, flush=True)
        time.sleep(600)

run_step(slow, description="")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_temporary_files_of_a_killed_step_do_not_stay(project: Path, number: int) -> None:
    """After SIGTERM they are removed at once, after SIGKILL by the next run; they are in the project, not in /tmp."""
    (project / "slow.py").write_text(SLOW)

    def start() -> tuple["subprocess.Popen[str]", str]:
        argv = [sys.executable, "-m", "slow"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(argv, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def end(process: "subprocess.Popen[str]", number: int) -> int:
        process.send_signal(number)
        process.communicate()
        return process.returncode

    def hidden() -> int:
        return len([path for path in (project / "data").rglob(".*.dsm") if path.is_dir()])

    process, place = start()
    assert Path(place).is_relative_to(project / "data" / "scratch")
    assert end(process, number) == (143 if number == signal.SIGTERM else -9)
    assert hidden() == (0 if number == signal.SIGTERM else 2)
    process, _ = start()
    assert hidden() == 2
    assert end(process, signal.SIGTERM) == 143
    assert hidden() == 0
