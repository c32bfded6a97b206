"""Ends the temporary Prefect server of a flow that was killed: SIGKILL gives Prefect no chance to do it.

A script of its own, with the read end of a pipe as stdin: nothing is written to it, its end is the signal.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil

MARK = "DSM_SERVER_OF"  # in the environment of the server: the process that started it
GRACE = 5.0  # seconds between the request to stop and the end


def servers_of(starter: str) -> Iterator[psutil.Process]:
    """The living servers that the process with this number started."""
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
