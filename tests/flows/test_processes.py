"""What a terminal shows of a child process; `test_stages` tests how children end."""

import itertools
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import processes
from flows.processes import run
from tests.flows.stand_in_project import REAL

CHILD = """\
import sys, time
assert sys.stderr.isatty()
def write(text, wait=0.2):
    sys.stderr.write(text); sys.stderr.flush(); time.sleep(wait)
write("search  10 %")
write("\\rsearch  20 %\\n")
write("err")
write("or: model: bad\\n")
write("\\x1b[31mERROR\\x1b[0m: failed to reproduce\\n")
print("on stdout")
write("the end")
"""

PARENT = """\
import sys
from pathlib import Path
from flows.processes import run
finished = run([sys.executable, "child.py"], cwd=Path.cwd(), timeout=30, line=lambda line: print("line:", line))
print(finished)
"""


def test_a_terminal_shows_progress_as_it_comes_but_no_error_line(project: Path) -> None:
    (project / "child.py").write_text(CHILD)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(REAL)},
        text=True,
    )
    os.close(theirs)
    pieces = []
    try:
        while piece := os.read(ours, 1024):
            pieces.append(piece)
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    out, _ = process.communicate()
    assert pieces[0] == b"search  10 %"  # before the line was complete
    assert b"".join(pieces) == b"search  10 %\rsearch  20 %\r\nthe end\x1b[?25h"
    assert out == (
        "line: on stdout\n"
        "Finished(code=0, stdout=['on stdout'], "
        "stderr=['search  20 %', 'error: model: bad', 'ERROR: failed to reproduce', 'the end'])\n"
    )


def test_elsewhere_every_line_but_errors_is_told(project: Path) -> None:
    (project / "child.py").write_text(CHILD.replace("assert sys.stderr.isatty()", ""))
    told: list[str] = []
    finished = run([sys.executable, "child.py"], cwd=project, timeout=30, line=told.append)
    assert sorted(told) == ["on stdout", "search  20 %", "the end"]
    assert finished.stderr[1] == "error: model: bad"


def read(chunks: list[bytes], *, terminal: bool) -> tuple[list[str], bytes, list[str]]:
    """The lines of a stream in these chunks; the text shown on a terminal; the reported lines."""
    lines: list[str] = []
    told: list[str] = []
    shown: list[bytes] = []
    coming = iter([*chunks, b""])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_more", lambda source: next(coming))
        processes._read(0, lines, told.append, shown.append if terminal else None)
    return lines, b"".join(shown), told


def in_the_end(raw: bytes) -> str:
    """What a terminal shows of a whole line."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode(errors="replace")).rstrip("\r").rsplit("\r", 1)[-1]


PIECES = [
    b"\r",
    b"\r",
    b"\n",
    b"\n",
    b"ab",
    b"error: x",
    b"ERROR: ",
    b"err",
    b"or: y",
    "\u00e9\u2501".encode(),
    b"\xff",
]
PIECES += [b"\x1b[31m", b"\x1b[2K", b"\x1b", b"[", b"1;", b"K", b"seven l"]


@given(st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join), st.data())
def test_how_a_stream_is_cut_changes_no_line(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)]) if a < b]
    *whole, last = stream.split(b"\n")
    expected = [in_the_end(raw) for raw in (*whole, *([last] if last else []))]
    lines, _, told = read(chunks, terminal=False)
    assert lines == expected
    assert told == [line for line in expected if not line.startswith(("error: ", "ERROR: "))]
    lines, shown, _ = read(chunks, terminal=True)
    assert lines == expected
    if b"r" not in stream.lower():  # no error line: everything is shown as it is
        assert shown == stream


@pytest.mark.parametrize("end", [b"\r", b"\x1b[2K\r", b"\r\x1b[K", b""])  # b"": dots, one after the other
@pytest.mark.parametrize("terminal", [True, False])
def test_each_refresh_of_a_bar_is_decoded_once(monkeypatch: pytest.MonkeyPatch, end: bytes, terminal: bool) -> None:
    decoded = 0

    class Counting:
        def sub(self, by: str, text: str) -> str:
            nonlocal decoded
            decoded += len(text)
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", by, text)

    monkeypatch.setattr(processes, "CONTROL", Counting())
    # The first 2,000 refreshes distinguish quadratic from linear work; the other 98,000 run only if it is linear.
    for count in (2_000, 100_000):
        decoded = 0
        chunks = [end + f"search {n:6d}".encode() for n in range(count)]
        lines, shown, _ = read(chunks, terminal=terminal)
        assert decoded <= 2 * sum(map(len, chunks))
        assert lines == [f"search {count - 1:6d}" if end else b"".join(chunks).decode()]
        assert shown == (b"".join(chunks) if terminal else b"")


def test_a_child_that_ends_between_two_looks_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "trap '' INT TERM; echo ready; exec sleep 60"  # it ends when this test says so, and not before
    with subprocess.Popen(["sh", "-c", program], stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        child.stdout.readline()

        def members_after_the_end(group: int) -> list[int]:
            os.kill(group, signal.SIGKILL)
            os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has collected it
            return []

        monkeypatch.setattr(processes, "_members", members_after_the_end)
        processes.end_group(child)
        assert child.returncode == -signal.SIGKILL
