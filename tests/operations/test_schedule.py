"""`dsm serve`, the schedule in one process."""

import signal
import time

import pytest

from tests.operations.operated import DSM, Operated, in_project


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("operated", ["* * * * *"], indirect=True)
@pytest.mark.timeout(3000)
def test_serve_fires_a_run_by_itself_and_ends_with_its_children(operated: Operated) -> None:
    with operated.process(*DSM, "serve") as served:
        (run, *_) = operated.wait("a scheduled run under `dsm serve`", lambda: operated.runs("COMPLETED"))
        operated.pause()
        assert run["auto_scheduled"]
        assert operated.aliases()["challenger"] == 1
        operated.wait("the last run to end", lambda: not operated.runs("RUNNING", "PENDING"))
        served.send_signal(signal.SIGINT)
        served.wait(60)
    until = time.monotonic() + 60
    while in_project(operated.root) and time.monotonic() < until:
        time.sleep(0.5)
    assert not in_project(operated.root)
