"""Ends what a local Ray has left running once the process that started it is done or gone, and its directory with it.

Ray's own processes notice the death of their parent, but some take a minute over it. Run as a script of its own, with
the read end of a pipe as stdin: nothing is written to it, its end is the signal. SIGKILL closes a pipe too.
"""

import os
import select
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil

INTERVAL = 1.0  # seconds between two looks; a process younger than that is left to Ray


def keep(parent: psutil.Process, directory: str) -> None:
    """Watches the children of `parent` that name `directory` in their command line, and theirs, until stdin ends."""
    seen: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        seen = {process for process in seen if process.is_running()} | set(_family(parent, directory))
    for process in sorted(seen | set(_family(parent, directory)), key=lambda process: process.pid):
        with suppress(psutil.NoSuchProcess):  # psutil compares the start time: a number given anew is not killed
            process.kill()
    psutil.wait_procs(seen, timeout=5)
    shutil.rmtree(directory, ignore_errors=True)


def _family(parent: psutil.Process, directory: str) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        for child in parent.children():
            with suppress(psutil.NoSuchProcess):
                if child.pid != os.getpid() and any(directory in word for word in child.cmdline()):
                    yield child
                    yield from child.children(recursive=True)


if __name__ == "__main__":
    # The parent may be gone already; then there is nothing to look at, and stdin has ended.
    keep(psutil.Process(os.getppid()), sys.argv[1])
