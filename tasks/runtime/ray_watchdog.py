"""Kills the processes of a local Ray and removes its directory after the process that started Ray has ended.

Ray's own processes notice the death of their parent, but some need a minute for it. This module runs as a script. Its
stdin is a pipe from the parent. Nothing is written to it; it is closed when the parent ends, also by SIGKILL.
"""

import os
import select
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil

INTERVAL = 1.0  # seconds between two scans; processes that are started after the last scan are left to Ray


def watch(parent: psutil.Process, directory: str) -> None:
    """Collects the children of `parent` with `directory` in their command line, and their children, until stdin ends.

    Then it kills them and removes the directory.
    """
    seen: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        seen = {process for process in seen if process.is_running()} | set(_family(parent, directory))
    for process in sorted(seen | set(_family(parent, directory)), key=lambda process: process.pid):
        with suppress(psutil.NoSuchProcess):  # psutil compares start times, so a reused process id is not killed
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
    # If the parent has already ended, there are no children, and stdin has ended too.
    watch(psutil.Process(os.getppid()), sys.argv[1])
