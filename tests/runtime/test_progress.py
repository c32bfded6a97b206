"""Progress as plain lines and as a bar, whatever is counted."""

import sys

import pytest

from tasks.runtime import progress as module
from tasks.runtime.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; add to it."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_twenty_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("search", 10) as advance:
        for _ in range(10):
            clock[0] += 11
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "search: 2/10, about 88 s to go",
        "search: 4/10, about 66 s to go",
        "search: 6/10, about 44 s to go",
        "search: 8/10, about 22 s to go",
        "search: 10/10 in 110.0 s",
    ]


def test_nothing_done_yet_has_no_time_to_go(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A first batch of more than 20 seconds in which `sample` found no row."""
    with progress("sample", 10) as advance:
        clock[0] += 25
        advance(0)
        clock[0] += 25
        advance(5)
        clock[0] += 50
        advance(0)
    assert capsys.readouterr().err.splitlines() == [
        "sample: 0/10",
        "sample: 5/10, about 50 s to go",
        "sample: 5/10, about 100 s to go",
        "sample: 5/10 in 100.0 s",
    ]


@pytest.mark.parametrize(("total", "steps"), [(0, []), (0, [0]), (0, [1]), (2, [5]), (2, [2, 0, 1])])
@pytest.mark.parametrize("terminal", [True, False])
def test_any_count(
    clock: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    steps: list[int],
    terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress("any", total) as advance:
        for n in steps:
            clock[0] += 25
            advance(n)
    assert f"{sum(steps)}/{total}" in capsys.readouterr().err
