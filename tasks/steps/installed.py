"""installed: the hashes of the installed code, for the stages of a project outside a checkout (`dsm init`)."""

from pathlib import Path

from tasks.pipeline.installed_code import CODE, code_text
from tasks.pipeline.step import run_main
from tasks.runtime.files import write_text


def store(root: Path) -> None:
    write_text(root / CODE, code_text(root))


if __name__ == "__main__":
    run_main("installed", lambda: store(Path.cwd()))
