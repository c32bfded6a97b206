"""Runs in a project on a small disk: every step with no room, then more, then enough. Prints what came of it."""

import contextlib
import importlib
import io
import json
import os
import shutil
from pathlib import Path

from tasks.pipeline.step import run_step

STEPS = {
    "model": "store", "data": "store", "sample": "sample", "score": "score", "search": "search", "prune": "prune",
    "evaluate": "evaluate", "transfer": "transfer", "report": "report", "register": "register",
}  # fmt: skip
ROOMS = [0, 4096, 16 << 10, 64 << 10, 256 << 10]  # bytes left


def fill(left: int, disk: Path = Path()) -> None:
    """Leaves that many bytes on the disk that holds a directory."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    size = shutil.disk_usage(disk).free - left
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, size))


def attempt(step: str) -> tuple[int, list[str]]:
    """Exit code, and the lines on stderr that tell an error."""
    function = getattr(importlib.import_module(f"tasks.steps.{step}"), STEPS[step])
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_step(function, description="")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception as error:
            return 1, [f"Traceback: {type(error).__name__}: {error}"]
    lines = told.getvalue().splitlines()
    return code, [line for line in lines if line.startswith(("error: ", "Traceback"))]


def main() -> None:
    found: dict[str, list[tuple[int, int, list[str]]]] = {}
    for step in STEPS:
        found[step] = []
        for left in ROOMS:
            fill(left)
            code, lines = attempt(step)
            found[step].append((left, code, lines))
            if not code:
                break
        Path("ballast").unlink(missing_ok=True)
        found[step].append((-1, *attempt(step)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
