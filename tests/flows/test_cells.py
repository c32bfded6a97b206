"""The list of cells: DVC, the schedules and `dsm rm` use it, and a failed run leaves no entry in it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cells import has_result, list_cell, list_entry
from flows.declaring import Asked, declare
from flows.environment import prepare
from flows.removal import taken_back_without_result
from flows.stages import STEPS, plan_stages, stages_of
from tasks.pipeline.settings import load_settings
from tasks.runtime.errors import InputError
from tests.cells import pipeline
from tests.faults.kills import DSM, all_gone, environment
from tests.flows.stand_in_project import REAL, cell_project, dvc, ran
from tests.flows.test_cli import call

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


def two_cells(root: Path) -> Path:
    """Two declared cells without a common name: `tiny` on `reviews` and `mine` on `quiz`."""
    cell_project(root)
    return change(root, pipeline=pipeline(("tiny", "reviews"), ("mine", "quiz")))


def change(root: Path, **sections: Any) -> Path:
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["models"]["mine"] = params["models"]["tiny"]
    params["benchmarks"]["quiz"] = params["benchmarks"]["reviews"]
    (root / "params.yaml").write_text(yaml.safe_dump(params | sections, sort_keys=False))
    return root


def test_two_cells_are_two_cells_for_dvc(project: Path, tmp_path: Path) -> None:
    two_cells(project)
    cells = [f"{step}@{name}" for name in ("tiny-reviews", "mine-quiz") for step in STEPS[2:]]
    stages = {*cells, "model@tiny", "model@mine", "data@reviews", "data@quiz"}
    assert set(dvc(project, "stage", "list", "--name-only").split()) == stages
    dvc(project, "repro")
    assert len(ran(project)) == len(stages)
    assert dvc(project, "status") == "Data and pipelines are up to date.\n"
    assert "Running stage" not in dvc(project, "repro", "--dry")

    dvc(project, "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    dvc(project, "push")
    assert dvc(project, "status", "--cloud") == "Cache and remote 'shared' are in sync.\n"
    for place in ("data", ".dvc/cache"):
        shutil.rmtree(project / place)
    dvc(project, "pull")
    assert dvc(project, "status", "--cloud") == "Cache and remote 'shared' are in sync.\n"
    assert dvc(project, "status") == "Data and pipelines are up to date.\n"
    assert set(plan_stages(stages_of("mine", "quiz"), project).values()) == {"cached"}
    assert ran(project) == []


@pytest.mark.slow
def test_a_cell_that_is_taken_out_and_put_back(project: Path, tmp_path: Path) -> None:
    two_cells(project)
    dvc(project, "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    dvc(project, "repro")
    dvc(project, "push")
    ran(project)
    code, out, err = call("rm", "mine-quiz")
    assert (code, err) == (0, "")
    assert out.splitlines()[:-1] == [
        f"removed from params.yaml: {line}"
        for line in ("pipeline.benchmarks: quiz", "pipeline.cells: mine-quiz", "pipeline.models: mine")
    ]
    assert yaml.safe_load((project / "params.yaml").read_text())["pipeline"] == pipeline(("tiny", "reviews"))
    assert (project / "data" / "cells" / "mine" / "quiz" / "report.html").exists()
    assert dvc(project, "status") == "Data and pipelines are up to date.\n"
    assert "Running stage" not in dvc(project, "repro")
    dvc(project, "pull")
    assert dvc(project, "status", "--cloud") == "Cache and remote 'shared' are in sync.\n"
    dvc(project, "gc", "--workspace", "--force")
    assert dvc(project, "status") == "Data and pipelines are up to date.\n"

    list_cell(project, "mine", "quiz")
    dvc(project, "pull")
    assert dvc(project, "status") == "Data and pipelines are up to date.\n"
    assert ran(project) == []


def test_the_last_cell_may_go(project: Path) -> None:
    cell_project(project)
    assert call("rm", "tiny-reviews")[0] == 0
    assert yaml.safe_load((project / "params.yaml").read_text())["pipeline"] == pipeline()
    assert dvc(project, "repro") == "Data and pipelines are up to date.\n"
    assert "no data or pipelines tracked" in dvc(project, "status")
    assert load_settings(project).pipeline.cells == {}
    for command in ("run", "plan", "explain", "retrain"):
        code, out, err = call(command)
        assert (code, out, err) == (2, "", "error: pipeline.cells: is empty; name a model and a benchmark\n")
    list_cell(project, "tiny", "reviews")
    assert yaml.safe_load((project / "params.yaml").read_text())["pipeline"] == pipeline(("tiny", "reviews"))


@pytest.mark.parametrize(
    ("name", "sections", "line"),
    [
        ("quiz", {}, "cell: 'quiz' is not in pipeline.cells; choose from ['mine-quiz', 'tiny-reviews']"),
        (
            "mine-quiz",
            {"nsa": {"mine-quiz": {"model": "mine", "benchmark": "quiz"}}},
            "pipeline.cells.mine-quiz: is needed by nsa.mine-quiz; remove that from params.yaml first",
        ),
        (
            "mine-quiz",
            {"studies": {"layers-mine-quiz": {"study": "layers", "model": "mine", "benchmark": "quiz"}}},
            "pipeline.cells.mine-quiz: is needed by studies.layers-mine-quiz; ",
        ),
        (
            "mine-quiz",
            {"retrain": {"schedules": {"nightly": {"cron": "0 3 * * *", "benchmarks": ["quiz"]}}}},
            "pipeline.cells.mine-quiz: is needed by retrain.schedules.nightly; ",
        ),
    ],
)
def test_a_cell_that_cannot_go(project: Path, name: str, sections: dict[str, Any], line: str) -> None:
    two_cells(project)
    change(project, **sections)
    before = (project / "params.yaml").read_bytes()
    code, out, err = call("rm", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {line}")
    assert (project / "params.yaml").read_bytes() == before


def test_what_others_need_stays_in_the_lists(project: Path) -> None:
    two_cells(project)
    sparse = {"method": "ria", "model": "mine", "sparsity": 0.5, "calibration": "data/benchmarks/quiz"}
    change(project, sparse={"ria": sparse})
    assert call("rm", "mine-quiz")[1].splitlines()[0] == "removed from params.yaml: pipeline.cells: mine-quiz"
    now = load_settings(project).pipeline
    assert (now.models, now.benchmarks, list(now.cells)) == (["mine", "tiny"], ["quiz", "reviews"], ["tiny-reviews"])


def test_a_file_without_a_list_of_cells_gets_one(project: Path) -> None:
    two_cells(project)
    params = yaml.safe_load((project / "params.yaml").read_text())
    named = dict(params["pipeline"])
    del params["pipeline"]["cells"]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    model, benchmark = named["models"][0], named["benchmarks"][0]
    assert list_cell(project, model, benchmark) == []
    written = yaml.safe_load((project / "params.yaml").read_text())["pipeline"]["cells"]
    assert set(written) == {f"{m}-{b}" for m in named["models"] for b in named["benchmarks"]}


def test_two_cells_of_one_name(project: Path) -> None:
    cell_project(project)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"] |= {"a": params["models"]["tiny"], "a-b": params["models"]["tiny"]}
    params["benchmarks"] |= {"b-c": params["benchmarks"]["reviews"], "c": params["benchmarks"]["reviews"]}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    list_cell(project, "a", "b-c")
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=r"^pipeline\.cells\.a-b-c: is a on b-c; a-b on c would have the same name$"):
        list_cell(project, "a-b", "c")
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("named", "cells"),
    [
        ((None, None), ["tiny-reviews", "mine-quiz"]),
        ((["mine"], None), ["mine-quiz"]),
        ((None, ["reviews", "quiz"]), ["tiny-reviews", "mine-quiz"]),
        ((["tiny"], ["reviews"]), ["tiny-reviews"]),
    ],
)
def test_a_schedule_goes_by_the_list(
    project: Path, monkeypatch: pytest.MonkeyPatch, named: tuple[list[str] | None, ...], cells: list[str]
) -> None:
    two_cells(project)
    prepare()
    from prefect.states import Completed

    from flows import retrain

    def done(model: str, benchmark: str, return_state: bool) -> Any:
        return Completed(data=f"{model} on {benchmark}")

    monkeypatch.setattr(retrain, "retrain_cell", done)
    monkeypatch.setattr(retrain, "create_table_artifact", lambda **_: None)
    assert list(retrain.retrain.fn(*named)) == cells


def test_a_schedule_of_no_cell(project: Path) -> None:
    two_cells(project)
    prepare()
    from flows.retrain import retrain

    line = r"^retrain: no cell of the pipeline is tiny on quiz; the cells are \['mine-quiz', 'tiny-reviews'\]$"
    with pytest.raises(InputError, match=line):
        retrain.fn(["tiny"], ["quiz"])


def test_what_came_to_nothing_is_taken_back_byte_by_byte(project: Path) -> None:
    text = (REAL / "params.yaml").read_text()
    (project / "params.yaml").write_text(text)

    def fail() -> None:
        with taken_back_without_result(project):
            declare(project, Asked(benchmarks=["copa"]))
            with taken_back_without_result(project):
                list_cell(project, "gemma-3-270m", "copa")
                list_entry(project, "studies", "layers-gemma-3-270m-copa", study("layers", "copa"))
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (project / "params.yaml").read_text() == text


def test_what_has_a_result_stays_and_what_it_needs(project: Path) -> None:
    (project / "params.yaml").write_text((REAL / "params.yaml").read_text())

    def fail() -> None:
        with taken_back_without_result(project):
            list_cell(project, "gemma-3-270m", "boolq")
            list_entry(project, "studies", "layers-gemma-3-270m-boolq", study("layers", "boolq"))
            has_result("pipeline.cells", "gemma-3-270m-boolq")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    now = load_settings(project)
    assert list(now.pipeline.cells) == ["smollm2-135m-instruct-rotten_tomatoes", "gemma-3-270m-boolq"]
    assert now.pipeline.models[1:] == ["gemma-3-270m"]
    assert now.studies == {}


def test_what_others_added_meanwhile_stays(project: Path) -> None:
    (project / "params.yaml").write_text((REAL / "params.yaml").read_text())
    code = "from pathlib import Path; from flows.cells import list_cell; "
    code += "list_cell(Path.cwd(), 'gemma-3-270m', 'rotten_tomatoes')"

    def fail() -> None:
        with taken_back_without_result(project):
            list_cell(project, "gemma-3-270m", "boolq")
            subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(REAL)})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    now = load_settings(project).pipeline
    assert list(now.cells)[1:] == ["gemma-3-270m-rotten_tomatoes"]
    assert (now.models[1:], now.benchmarks[1:]) == (["gemma-3-270m"], [])


def study(name: str, benchmark: str) -> dict[str, str]:
    return {"study": name, "model": "gemma-3-270m", "benchmark": benchmark}


def dsm(root: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """The command with the repository's own steps instead of the stand-ins of `cell_project`."""
    with (root / "out.txt").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, *DSM, *arguments],
            cwd=root,
            env=environment(root) | {"PYTHONPATH": str(REAL)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


REFUSES = "open('ran.txt', 'a').write('x\\n')\nimport os; os.write(2, b'error: model: no gated MLP\\n'); exit(2)"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["run", "--model", "mine", "--benchmark", "sst2", "--data", "rows"],
        ["study", "fractions", "--model", "mine", "--benchmark", "quiz"],
        ["explain", "--nsa", "--model", "mine", "--benchmark", "quiz"],
        ["sparsify", "ria", "--model", "mine"],
    ],
)
@pytest.mark.usefixtures("prefect_home")
def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path, command: list[str]) -> None:
    root = change(cell_project(tmp_path / "project"))
    (root / "stand_in.py").write_text(REFUSES)
    for split in ("train", "test"):
        (root / "rows" / "sst2").mkdir(parents=True, exist_ok=True)
        (root / "rows" / "sst2" / f"{split}.jsonl").write_text('{"sentence": "a", "label": 1}\n')
    before = (root / "params.yaml").read_bytes()
    process = dsm(root, *command)
    assert process.wait(240) == 2, (root / "out.txt").read_text()
    said = (root / "out.txt").read_text()
    assert "added to params.yaml" in said
    assert said.splitlines()[-1] == "error: model: no gated MLP"
    assert (root / "params.yaml").read_bytes() == before
    dvc(root, "status")


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.usefixtures("prefect_home")
def test_a_killed_run_keeps_its_cell_and_an_ended_one_does_not(tmp_path: Path) -> None:
    """DVC works on the listed cells."""
    root = change(cell_project(tmp_path / "project"))
    before = (root / "params.yaml").read_text()
    stand_in = (root / "stand_in.py").read_text()
    wait = "import os, sys, time\nif sys.argv[1] == 'search':\n    open('reached', 'w').close()\n"
    wait += "    while os.path.exists('reached'): time.sleep(0.1)\n    sys.exit(1)\n"
    for number, listed in ((signal.SIGTERM, False), (signal.SIGKILL, True)):
        (root / "reached").unlink(missing_ok=True)
        (root / "stand_in.py").write_text(wait + stand_in)
        process = dsm(root, "run", "--model", "mine", "--benchmark", "quiz")
        give_up = time.monotonic() + 240
        while not (root / "reached").exists():
            assert process.poll() is None, (root / "out.txt").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.1)
        process.send_signal(number)
        process.wait(60)
        assert ("mine-quiz" in load_settings(root).pipeline.cells) == listed
        if not listed:
            assert (root / "params.yaml").read_text() == before
    (root / "reached").unlink()
    assert all_gone(root)
    (root / "stand_in.py").write_text(stand_in)
    ran(root)
    dvc(root, "repro")
    assert ran(root).count("search") == 2
    assert dvc(root, "status") == "Data and pipelines are up to date.\n"
    (root / "params.yaml").write_text(before)
    assert dvc(root, "status") == "Data and pipelines are up to date.\n"
