"""The entry point that every step shares: `python -m tasks.steps.<step> --model M --benchmark B`."""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from safetensors import SafetensorError

from tasks.pipeline.cell import open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import scratch_beside, write_json
from tasks.runtime.usage import measure_usage


def run_step(step: Callable[..., None], *, description: str, argument: str | None = None) -> None:
    """Parses the command line, opens the cell, runs `step`, and ends the process with 0, or 2 after one line.

    A step that needs a word more gets it from the option `--<argument>`, behind the cell.

    The time it took goes to data/scratch, outside DVC: a cached output holds nothing that changes from run to run.
    """
    started = sys.modules["__main__"].__spec__  # `step` may be defined in another module than the one that is run
    name = started.name if started and started.name.startswith("tasks.steps.") else step.__module__
    name = name.rpartition(".")[2]
    parser = argparse.ArgumentParser(prog=f"python -m tasks.steps.{name}", description=description)
    parser.add_argument("--model", help="a name under models in params.yaml (default: that of a cell: see `open_cell`)")
    parser.add_argument("--benchmark", help="a name under benchmarks (default: that of a cell)")
    if argument:
        parser.add_argument(f"--{argument}", required=True)
    arguments = parser.parse_args()
    more = [getattr(arguments, argument)] if argument else []

    def body() -> None:
        with measure_usage() as usage:
            cell = open_cell(arguments.model, arguments.benchmark)
            with _temporary_files_beside(cell.scratch / name):
                step(cell, *more)
        write_json(cell.scratch / "timings" / f"{'-'.join([name, *more])}.json", usage)

    run_main(name, body)


def run_main(name: str, body: Callable[[], None]) -> None:
    """Runs the body of a process that ends with 0, or 2 after one line, and soon after the flow that started it."""
    _end_with_the_parents()
    # An orderly end on `kill` too: Python's default would leave temporary files behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        body()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SafetensorError as error:  # a full disk, or a damaged file
        print(f"error: {name}: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"error: {InputError(str(error.filename or name), error.strerror or str(error))}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _temporary_files_beside(place: Path) -> Iterator[None]:
    """Temporary files of every library go there, so that those of a killed step do not stay: see `scratch_beside`."""
    before = tempfile.tempdir
    with scratch_beside(place) as directory:
        tempfile.tempdir = str(directory)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _end_with_the_parents() -> None:
    """Ends this process soon after one of those that started it (in its process group, or the flow) is gone.

    SIGKILL to `dvc` or to the flow leaves the step running; it would write its output behind the back of the next run.
    """
    group = os.getpgrp()
    watched = [p for p in psutil.Process().parents() if _in_group(p, group)]
    if flow := os.environ.get("DSM_FLOW_PID"):
        try:
            watched.append(psutil.Process(int(flow)))
        except psutil.NoSuchProcess:
            sys.exit("the flow that started this step is gone")
    if not watched:
        return

    def watch() -> None:
        while all(map(_alive, watched)):
            time.sleep(0.5)
        # The flow puts dvc and its children into a group of their own; otherwise the group is not ours to end.
        if flow:
            os.killpg(group, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group
    except ProcessLookupError:
        return False
