"""Hashes of the installed code, as parameters of a project outside a checkout.

In a checkout, the stages of dvc.yaml depend on the code itself. Elsewhere they depend on values in code.yaml, one for
each package or module, so that DVC detects which of them a new version changes.
"""

import hashlib
from pathlib import Path
from typing import Any

from tasks.runtime.errors import InputError
from tasks.runtime.files import write_text
from tasks.runtime.yamltext import read_yaml

CODE = "code.yaml"
HEADER = "# Hashes of the installed code, written by dsm: a stage runs again when the code that it uses has changed.\n"
TASKS = Path(__file__).parents[1]


def renew_code(root: Path) -> bool:
    """Writes code.yaml if the installed code has changed; does nothing in a project without this file.

    Returns:
        Whether it was written.

    Raises:
        InputError: dvc.yaml depends on code that the installed version does not have.
    """
    path = root / CODE
    if not path.is_file():
        return False
    text = code_text(root)
    if path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def code_text(root: Path) -> str:
    """The content of code.yaml for the dvc.yaml of a project."""
    keys = sorted(_asked_for(read_yaml((root / "dvc.yaml").read_text(encoding="utf-8"), field="dvc.yaml")))
    return HEADER + "".join(f"{key}: {_hash(key)}\n" for key in keys)


def key_of(dependency: str) -> str:
    """The key of a dependency on code: tasks/steps/score.py is steps-score, tasks/method is method."""
    return dependency.removeprefix("tasks/").removesuffix(".py").replace("/", "-")


def _asked_for(pipeline: Any) -> set[str]:
    """The keys of code.yaml that the stages depend on."""
    keys: set[str] = set()
    for stage in pipeline["stages"].values():
        for param in stage.get("do", stage).get("params", ()):
            if isinstance(param, dict):
                keys.update(param.get(CODE, ()))
    return keys


def _hash(key: str) -> str:
    path = TASKS.joinpath(*key.split("-"))
    if not path.is_dir():
        path = path.with_suffix(".py")
        if not path.is_file():
            raise InputError("dvc.yaml", f"is of another version of dsm ({key} is unknown); `dsm init .` renews it")
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    digest = hashlib.sha256()
    for file in files:
        if file.suffix != ".pyc":
            digest.update(f"{file.relative_to(TASKS)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
