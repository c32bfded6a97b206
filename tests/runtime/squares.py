"""A worker for the tests of the worker pool: it starts quickly, and can be told to fail."""

import os
import signal
from pathlib import Path

from tasks.runtime.errors import InputError


class Squares:
    """A worker without a model. Some parts are not numbers but failures of workers."""

    names = ("square",)

    def compute(self, part: int | str | Path) -> object:
        if isinstance(part, int):
            return part * part
        if isinstance(part, Path):  # dies, once
            if part.exists():
                return "alive"
            part.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if part == "refuse":
            raise InputError("params.field", "is wrong")
        if part == "missing":
            raise FileNotFoundError(2, "No such file or directory", "rows.jsonl")
        if part == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError(f"cannot square {part}")
