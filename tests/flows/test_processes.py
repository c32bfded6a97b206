"""What the person at a terminal sees of a child process; how children end is in test_stages."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from flows.processes import run
from tests.flows.project import REAL

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
    assert pieces[0] == b"search  10 %"  # before its line was complete
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
