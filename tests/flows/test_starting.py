"""A project outside a checkout: what `dsm init` writes, and that its stages depend on the installed code."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import starting
from flows.stages import any_stale, run_stage
from tasks.pipeline import installed_code
from tasks.pipeline.installed_code import CODE, code_text, key_of, renew_code
from tasks.pipeline.settings import load_settings, parse_settings
from tasks.runtime.errors import InputError
from tests.flows.stand_in_project import REAL, dvc
from tests.flows.test_cli import call
from tests.tiny import save_tiny

DSM = [sys.executable, "-c", "from flows.cli import app; app()"]


@pytest.fixture
def work(project: Path) -> Path:
    """A new project with a tiny model and forty rows beside it."""
    save_tiny(project / "Tiny-1.0")
    rows = [{"question": f"Is {i} odd?", "choices": ["no", "yes"], "answer": i % 2} for i in range(40)]
    (project / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call("init", "work")
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == "next: cd work && dsm run --model MODEL --benchmark BENCHMARK"
    return project / "work"


def test_every_stage_depends_on_the_hash_of_its_code() -> None:
    real = yaml.safe_load((REAL / "dvc.yaml").read_text())["stages"]
    made = yaml.safe_load(starting.pipeline_text())["stages"]
    assert set(made) == {"code", *real}
    for name, stage in real.items():
        body, other = stage.get("do", stage), made[name].get("do", made[name])
        code = [key_of(dep) for dep in body["deps"] if dep.startswith("tasks/")]
        assert code
        assert {CODE: code} in other["params"]
        assert [param for param in other["params"] if param != {CODE: code}] == body.get("params", [])
        assert other.get("deps", []) == [dep for dep in body["deps"] if not dep.startswith("tasks/")]
        assert [body.get(key) for key in ("cmd", "outs", "metrics")] == [
            other.get(key) for key in ("cmd", "outs", "metrics")
        ]


def test_a_new_project(work: Path) -> None:
    names = {".dvc", ".dvcignore", ".gitignore", "README.md", "code.yaml", "dvc.yaml", "params.yaml"}
    assert {path.name for path in work.iterdir()} == names
    assert len((work / "README.md").read_text().splitlines()) == 5
    settings, checkout = load_settings(work), parse_settings((REAL / "params.yaml").read_text())
    assert (settings.pipeline.models, settings.pipeline.benchmarks, settings.pipeline.cells) == ([], [], {})
    assert settings.model_dump(exclude={"pipeline"}) == checkout.model_dump(exclude={"pipeline"})
    assert (work / ".dvc" / "config").read_text() == (REAL / ".dvc" / "config").read_text()
    assert dvc(work, "stage", "list", "--name-only").split() == ["code"]


def test_init_again_renews_the_pipeline_alone(work: Path) -> None:
    (work / "params.yaml").write_text((work / "params.yaml").read_text() + "# mine\n")
    (work / "dvc.yaml").write_text(starting.MADE + " of an older version\nstages: {}\n")
    before = (work / "params.yaml").read_text()
    code, out, _ = call("init", "work")
    assert (code, out.count("\n")) == (0, 1)
    assert "work/dvc.yaml is now that of dsm-pruning " in out
    assert (work / "params.yaml").read_text() == before
    assert (work / "dvc.yaml").read_text() == starting.pipeline_text()


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        ("dvc.yaml", "has a dvc.yaml that `dsm init` did not write"),
        ("params.yaml", "has a params.yaml already"),
        ("tasks/x.py", "has tasks, which would hide the installed package of that name"),
    ],
)
def test_what_is_there_is_not_overwritten(project: Path, there: str, problem: str) -> None:
    (project / "work" / there).parent.mkdir(parents=True)
    (project / "work" / there).write_text("stages: {}\n")
    assert call("init", "work") == (2, "", f"error: DIR: work {problem}\n")
    assert [path.name for path in (project / "work").rglob("*") if path.is_file()] == [Path(there).name]


def test_a_file_is_no_directory(project: Path) -> None:
    (project / "work").write_text("")
    assert call("init", "work") == (2, "", "error: DIR: work is not a directory\n")


def test_a_directory_with_files_keeps_them(project: Path) -> None:
    (project / "work").mkdir()
    (project / "work" / "README.md").write_text("mine\n")
    (project / "work" / ".gitignore").write_text("*.tmp\n/data/\n")
    assert call("init", "work")[0] == 0
    assert (project / "work" / "README.md").read_text() == "mine\n"
    assert (project / "work" / ".gitignore").read_text().splitlines()[:3] == ["*.tmp", "/data/", "/metrics/"]


def test_a_stage_is_stale_when_its_code_has_changed_and_only_then(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.chdir(work)
    from flows.cells import list_cell
    from flows.declaring import Asked, declare

    declared = declare(work, Asked(["../Tiny-1.0"], ["../quiz.jsonl"]))
    list_cell(work, declared.models[0], declared.benchmarks[0])
    assert run_stage("data@quiz", work, timeout=300, log=said.append) == "ran"
    assert run_stage("data@quiz", work, timeout=300, log=said.append) == "cached"
    other = tmp_path / "other" / "tasks"  # a newer version
    shutil.copytree(installed_code.TASKS, other, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(installed_code, "TASKS", other)
    assert not renew_code(work)
    (other / "method" / "grid.py").write_text("# newer\n")
    assert not any_stale(["data@quiz"], work)
    (other / "benchmarks" / "rows.py").write_text("# newer\n")
    assert any_stale(["data@quiz"], work)
    # `dvc repro` alone looks at the installed code first: the real code, which is the older one here.
    told = dvc(work, "repro", "data@quiz")
    assert "Running stage 'code'" in told
    assert "Running stage 'data@quiz'" not in told
    (other / "steps" / "data.py").unlink()
    with pytest.raises(
        InputError, match=r"^dvc.yaml: is of another version of dsm \(steps-data is unknown\); `dsm init "
    ):
        code_text(work)


def test_the_metrics_of_the_default_cell_fit_a_screen(finished_root: Path) -> None:
    header, line = dvc(finished_root, "metrics", "show").splitlines()
    assert header.split() == ["Path", "base", "p", "pruned"]
    assert len(line.replace("tiny-reviews", "smollm2-135m-instruct-rotten_tomatoes").rstrip()) <= 80


def test_a_checkout_has_no_such_file(project: Path) -> None:
    assert not renew_code(project)
    assert not (project / CODE).exists()


@pytest.mark.real
@pytest.mark.slow
def test_a_strangers_path(work: Path) -> None:
    """From `dsm init` to a recipe for a user's own model, until all is up to date, without an editor."""

    def dsm(*arguments: str) -> str:
        environment = os.environ | {"PREFECT_HOME": str(work / "prefect"), "COLUMNS": "80"}
        done = subprocess.run([*DSM, *arguments], cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ["--limit", "12", "--set", "adaptation.size=5", "--set", "attribution.max_nodes=4"]
    asked = ["--model", "../Tiny-1.0", "--benchmark", "../quiz.jsonl"]
    out = dsm("run", *asked, *small, "--set", "search.fractions=[0.1, 0.4]")
    assert len(re.findall(r"^\w+ +ran ", out, re.MULTILINE)) == 9
    assert "tiny-1_0" in out
    assert (work / "data" / "cells" / "tiny-1_0" / "quiz" / "pruned.json").is_file()
    again = dsm("run", *asked)
    assert len(re.findall(r"^\w+ +cached ", again, re.MULTILINE)) == 9
    assert json.loads(dsm("show", "--json"))[0]["model"] == "tiny-1_0"
    assert [line["does"] for line in json.loads(dsm("plan", "--json"))["lines"]] == ["cached"] * 9 + ["check"]
    assert all(one["whole"] for one in json.loads(dsm("verify", "--json")))
    assert json.loads(dsm("versions", "--json"))["versions"][0]["number"] == 1
    evaluated = json.loads(dsm("evaluate", "tiny-1_0-quiz", "--json"))
    assert (evaluated["n"], set(evaluated["systems"])) == (12, {"base", "model"})
    assert json.loads(dsm("try", "--json", '{"question": "Is 9 odd?", "choices": ["no", "yes"]}'))["options"] == [
        " no", " yes",
    ]  # fmt: skip
    declared = yaml.safe_load((work / "params.yaml").read_text())["models"]
    assert dsm("validate").count("model ") == len(declared)
    assert "Data and pipelines are up to date" not in dvc(work, "status")  # the stage `code` always runs
    assert "Running stage 'score" not in dvc(work, "repro")
