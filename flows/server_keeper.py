"""Stops the temporary Prefect server of a flow that was killed: after SIGKILL, Prefect cannot do it itself.

It is a script of its own, with the read end of a pipe as stdin. Nothing is written to the pipe; when it is closed, the
flow has ended.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil

MARK = "DSM_SERVER_OF"  # a variable in the server's environment: the id of the process that started it
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def servers_of(starter: str) -> Iterator[psutil.Process]:
    """The running servers that the process with this id started."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == starter and any("prefect.server" in word for word in process.cmdline()):
                yield process


if __name__ == "__main__":
    sys.stdin.read()
    left = list(servers_of(sys.argv[1]))
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(left, timeout=GRACE)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
