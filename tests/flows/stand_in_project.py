"""Temporary DVC projects whose stages are one-liners."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from flows.environment import child_environment
from tests.cells import write_cell

REAL = Path(__file__).parents[2]

# A stand-in for every step: copies the finished output, and notes that it ran.
STAND_IN = """\
import pathlib, sys
step, *outs = sys.argv[1:]
for out in map(pathlib.Path, outs):
    out.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path("made") / out
    out.write_bytes(made.read_bytes() if made.exists() else step.encode())
with open("ran.txt", "a") as ran:
    ran.write(step + "\\n")
print(f"{step} writes a line", file=sys.stderr)
"""


def dvc(root: Path, *arguments: str) -> str:
    """Runs dvc in a project and returns its stdout."""
    argv = [sys.executable, "-P", "-m", "dvc", *arguments]
    return subprocess.run(argv, cwd=root, env=child_environment(), check=True, capture_output=True, text=True).stdout


def make_project(root: Path, stages: dict[str, Any]) -> Path:
    """A DVC project without git, with these stages."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n"
    )
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return root


def script(root: Path, name: str, text: str) -> str:
    """A Python script in the project; returns the command that a stage runs it with."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return f"python {name}"


def cell_project(root: Path) -> Path:
    """A project with the stages and files of the real dvc.yaml, for the cell `tiny` on `reviews`."""
    run = script(root, "stand_in.py", STAND_IN)
    real = yaml.safe_load((REAL / "dvc.yaml").read_text())["stages"]
    stages = {}
    for step, stage in real.items():
        body = stage.get("do", stage)
        outs = [*body.get("outs", []), *body.get("metrics", [])]
        stood_in = {
            "cmd": " ".join([run, step, *outs]),
            # The code of the real steps is not in the project, but the files that they read are.
            "deps": ["stand_in.py", *(dep for dep in body["deps"] if dep.startswith(("data/", "${")))],
            "outs": outs,
        } | ({"params": body["params"]} if "params" in body else {})
        stages[step] = {"matrix": stage["matrix"]} | stood_in if "matrix" in stage else stage | {"do": stood_in}
    make_project(root, stages)
    cell = write_cell(root / "made")
    (root / "params.yaml").write_text((cell.root / "params.yaml").read_text())
    script(
        root, "tasks/steps/register.py", "import sys\nopen('ran.txt', 'a').write('register\\n')\nprint(sys.argv[1:])\n"
    )
    return root


def ran(root: Path) -> list[str]:
    """The stand-ins that ran since the last call, in order."""
    path = root / "ran.txt"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names
