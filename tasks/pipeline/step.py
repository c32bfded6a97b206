"""The entry point of all steps: `python -m tasks.steps.<step> --model M --benchmark B`."""

import argparse
import gc
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
    """Parses the command line, opens the cell and runs `step`. On bad input it prints one line and exits with 2.

    With `argument`, the value of the required option `--<argument>` is the second argument of the step.

    The duration is written to data/scratch, outside DVC, since cached outputs must not change from run to run.
    """
    started = sys.modules["__main__"].__spec__  # `step` may be defined in a module other than the one that is run
    name = started.name if started and started.name.startswith("tasks.steps.") else step.__module__
    name = name.rpartition(".")[2]
    parser = argparse.ArgumentParser(prog=f"python -m tasks.steps.{name}", description=description)
    parser.add_argument("--model", help="a name under models in params.yaml (default: the first cell's)")
    parser.add_argument("--benchmark", help="a name under benchmarks in params.yaml (default: the first cell's)")
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
    """Runs `body`. On bad input it prints one line and exits with 2; it exits soon after its parent processes.

    Args:
        name: the program's name, for messages without a file name.
    """
    gc.freeze()  # what was imported stays: the collector need not look at it
    gc.enable()  # see tasks/steps/__init__.py
    _exit_with_parents()
    # An exception on SIGTERM: Python's default would leave temporary files.
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
def _temporary_files_beside(path: Path) -> Iterator[None]:
    """Puts the temporary files of all libraries beside `path`. `scratch_beside` removes those of a killed step."""
    before = tempfile.tempdir
    with scratch_beside(path) as directory:
        tempfile.tempdir = str(directory)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _exit_with_parents() -> None:
    """Kills this process soon after a parent in its process group, or the flow, has ended.

    Otherwise, after SIGKILL to `dvc` or to the flow, the step would go on and write its output during the next run.
    """
    group = os.getpgrp()
    watched = [p for p in psutil.Process().parents() if _in_group(p, group)]
    if flow := os.environ.get("DSM_FLOW_PID"):
        try:
            watched.append(psutil.Process(int(flow)))
        except psutil.NoSuchProcess:
            sys.exit("the flow that started this step has ended")
    if not watched:
        return

    def watch() -> None:
        while all(map(_alive, watched)):
            time.sleep(0.5)
        # The flow runs dvc in its own process group; without a flow the group is not ours.
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
