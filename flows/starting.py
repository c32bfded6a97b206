"""The files that `dsm init` writes for a project outside a checkout."""

import io
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.environment import child_environment
from flows.stages import StepFailed
from flows.yaml_entries import flow_style, round_trip
from tasks.pipeline.installed_code import CODE, code_text, key_of
from tasks.pipeline.settings import PARAMS
from tasks.runtime.errors import InputError
from tasks.runtime.files import write_text

FILES = Path(__file__).parent / "project_files"  # the files of the checkout, under names that DVC ignores
MADE = "# Made by `dsm init`"
PIPELINE = "dvc.yaml"
IGNORED = ("/data/", "/metrics/", "/mlflow.db*", "/mlartifacts/", "/mlruns/", "/.venv/", "/dvc.lock")
README = """\
# A project of dsm: language models adapted to benchmarks by pruning, from ten examples
`dsm run --model MODEL --benchmark BENCHMARK` adapts a model (directory or hub id) to a benchmark (name or file).
`dsm show` shows all results, `dsm ui` the tracking, `dsm try` asks both models; `dsm --help` lists all commands.
params.yaml has the declarations and all settings; `dvc repro` does the same work without tracking.
Results are in data/cells: report.html to read, pruned.json to apply (`dsm apply`), `dsm export` for the weights.
"""


def init(directory: Path) -> list[str]:
    """Creates a project, or updates the dvc.yaml of a project that `init` created to the installed version.

    Returns:
        A report, one item per line.

    Raises:
        InputError: a file of the project exists already, or a directory would hide the installed code.
        StepFailed: `dvc init` fails.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError("DIR", f"{directory} is not a directory")
    for package in ("tasks", "flows"):
        if (directory / package).exists():
            raise InputError("DIR", f"{directory} has {package}, which would hide the installed package of that name")
    pipeline = directory / PIPELINE
    made_before = pipeline.is_file() and pipeline.read_text(encoding="utf-8").startswith(MADE)
    if pipeline.exists() and not made_before:
        raise InputError("DIR", f"{directory} has a {PIPELINE} that `dsm init` did not write")
    if (directory / PARAMS).exists():
        if not made_before:
            raise InputError("DIR", f"{directory} has a {PARAMS} already")
        _write_pipeline(directory)
        return [f"{pipeline} is now that of dsm-pruning {version('dsm-pruning')}; nothing else was changed"]
    directory.mkdir(parents=True, exist_ok=True)
    _init_dvc(directory)
    shutil.copyfile(FILES / "dvc_config", directory / ".dvc" / "config")
    shutil.copyfile(FILES / "dvcignore", directory / ".dvcignore")
    _ignore(directory / ".gitignore")
    if not (directory / "README.md").exists():
        write_text(directory / "README.md", README)
    _write_pipeline(directory)
    write_text(directory / PARAMS, _settings())  # last: this file makes the directory a project
    return [
        f"{directory} is a project of dsm-pruning {version('dsm-pruning')}",
        f"next: cd {directory} && dsm run --model MODEL --benchmark BENCHMARK",
    ]


def _init_dvc(directory: Path) -> None:
    if (directory / ".dvc").is_dir():
        return
    command = [sys.executable, "-P", "-m", "dvc", "init", "--no-scm", "--quiet"]
    done = subprocess.run(command, cwd=directory, env=child_environment(), capture_output=True, text=True)
    if done.returncode:
        raise StepFailed("dvc init", (done.stderr.strip().splitlines() or ["failed"])[-1])


def _ignore(path: Path) -> None:
    there = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    missing = [line for line in IGNORED if line not in there]
    write_text(path, "\n".join([*there, *missing]) + "\n")


def _write_pipeline(directory: Path) -> None:
    write_text(directory / PIPELINE, pipeline_text())
    write_text(directory / CODE, code_text(directory))


def pipeline_text() -> str:
    """The dvc.yaml of the checkout, with code.yaml instead of the code files, and a stage that writes code.yaml."""
    yaml = round_trip()
    document = yaml.load((FILES / "pipeline.yaml").read_text(encoding="utf-8"))
    stages: dict[str, Any] = {
        "code": {
            "cmd": "PATH=.venv/bin:$PATH python -m tasks.steps.installed",
            "always_changed": True,
            "outs": [{CODE: {"cache": False}}],
        }
    }
    for name, stage in document["stages"].items():
        body = stage.get("do", stage)
        code = [key_of(dep) for dep in body["deps"] if dep.startswith("tasks/")]
        body["deps"] = [dep for dep in body["deps"] if not dep.startswith("tasks/")]
        if not body["deps"]:
            del body["deps"]
        body["params"] = [*body.get("params", ()), {CODE: flow_style(code)}]
        stages[name] = stage
    text = io.StringIO()
    yaml.dump({"stages": stages}, text)
    head = f"{MADE} of dsm-pruning {version('dsm-pruning')}; after an upgrade, `dsm init .` writes it again.\n"
    return head + text.getvalue()


def _settings() -> str:
    """The params.yaml of the checkout without cells."""
    yaml = round_trip()
    document = yaml.load((FILES / "settings.yaml").read_text(encoding="utf-8"))
    for name, empty in (("models", []), ("benchmarks", []), ("cells", {})):
        document["pipeline"][name] = flow_style(empty)
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()
