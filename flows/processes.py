"""Child processes that are never left behind: each in a session of its own, ended as a whole group."""

import codecs
import errno
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flows.environment import child_environment

# SIGINT first: a step then removes its temporary files, dvc releases its locks. The others end those that ignore it.
SIGNALS = ((signal.SIGINT, 5.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0))  # and the seconds each is given

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and cursor movements
UNFINISHED = re.compile(r"\x1b(\[[0-9;?]*)?\Z")

SHOW_CURSOR = b"\x1b[?25h"

# A step's own error line, and what dvc says about it: the caller prints it again, once and in short.
HELD_BACK = re.compile(r"(error|ERROR): ")
LONGEST_PREFIX = len("error: ")


@dataclass
class Finished:
    """How a process ended, and the lines it wrote (without colours)."""

    code: int
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    timeout: float,
    line: Callable[[str], None],
    tell_stdout: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Runs `argv` in `cwd` and waits until it and everything that writes to its output is gone.

    `environment` is added to what every child gets.

    On a terminal its stderr is shown as it comes, progress bars too; elsewhere each line of it goes to `line`. Either
    way lines that start with `error: ` are held back: they are in the result. Lines of stdout go to `line` if
    `tell_stdout`.

    On every way out but a normal one (timeout, cancellation, Ctrl-C, any exception) the whole group is ended first.

    Raises:
        TimeoutError: it took longer than `timeout` seconds.
    """
    terminal = sys.stderr.isatty()
    ours, theirs = _pseudo_terminal() if terminal else os.pipe()
    finished = Finished(0)
    try:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**child_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            start_new_session=True,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    assert process.stdout is not None
    ending = threading.Event()  # nobody wants to see the tracebacks of what we interrupt ourselves

    def tell(text: str) -> None:
        if not ending.is_set():
            line(text)

    def show(data: bytes) -> None:
        if not ending.is_set():
            _show(data)

    tell_out = tell if tell_stdout else _ignore
    readers = [
        threading.Thread(target=_read, args=(process.stdout.fileno(), finished.stdout, tell_out), daemon=True),
        threading.Thread(target=_read, args=(ours, finished.stderr, tell, show if terminal else None), daemon=True),
    ]
    deadline = time.monotonic() + timeout
    try:
        for reader in readers:
            reader.start()
        finished.code = process.wait(timeout)
        for reader in readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        if any(reader.is_alive() for reader in readers):
            raise TimeoutError
    except subprocess.TimeoutExpired:
        ending.set()
        end_group(process)
        raise TimeoutError from None
    except BaseException:
        ending.set()
        end_group(process)
        raise
    finally:
        if terminal:
            _show(SHOW_CURSOR)  # a progress bar that was ended could not do it
        for reader in readers:
            reader.join(1.0)
        if not any(reader.is_alive() for reader in readers):  # else a process that left the group still holds them
            process.stdout.close()
            os.close(ours)
    return finished


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends the process, which leads its group, and every other member of that group."""
    try:
        for signal_, grace in SIGNALS:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal_)
            give_up = time.monotonic() + grace
            while time.monotonic() < give_up:
                process.poll()
                if not _members(process.pid):
                    process.poll()  # it may have ended after the first poll
                    return
                time.sleep(0.05)
    except BaseException:  # a second Ctrl-C: no more patience
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.poll()
        raise


def _members(group: int) -> list[int]:
    """The living processes of a group. Zombies do not count: their parent may never collect them."""
    pids = []
    for member in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(member.pid) == group and member.status() != psutil.STATUS_ZOMBIE:
                pids.append(member.pid)
    return pids


def _pseudo_terminal() -> tuple[int, int]:
    """Our end and the child's, as wide as the real terminal; line ends pass unchanged."""
    ours, theirs = pty.openpty()
    with suppress(OSError):
        size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    return ours, theirs


def _show(data: bytes) -> None:
    with suppress(OSError):
        os.write(sys.stderr.fileno(), data)


def _read(
    source: int, lines: list[str], line: Callable[[str], None], show: Callable[[bytes], None] | None = None
) -> None:
    """Splits a stream into `lines`; each goes to `line`, or raw to `show`, which gets unfinished lines too."""
    current = _Line()
    hidden = bytearray()  # what `show` has not been given yet: it may begin an error line

    def take(raw: bytes) -> None:
        current.add(raw)
        if show:
            hidden.extend(raw)

    def end(newline: bytes) -> None:
        text = current.text()
        lines.append(text)
        if not HELD_BACK.match(text):
            if show:
                show(bytes(hidden) + newline)
            else:
                line(text)
        hidden.clear()

    while data := _more(source):
        *ended, open_end = data.split(b"\n")
        for raw in ended:
            take(raw)
            end(b"\n")
            current = _Line()
        take(open_end)
        if show and hidden and len(current.start()) >= LONGEST_PREFIX and not HELD_BACK.match(current.start()):
            show(bytes(hidden))
            hidden.clear()
    if current.begun:
        end(b"")


class _Line:
    """A line that comes in pieces: what a terminal shows of it.

    Each byte is decoded once and only what the last carriage return left visible is kept: a progress bar is one line of
    many thousand refreshes.
    """

    def __init__(self) -> None:
        self.begun = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._unfinished = ""  # a control sequence whose end has not come yet
        self._before = ""  # what the last carriage return was given after; shown until something follows it
        self._parts: list[str] = []  # what followed
        self._start = ""  # the first characters of what followed, enough to recognise an error line

    def add(self, data: bytes, final: bool = False) -> None:
        self.begun = self.begun or bool(data)
        text = self._unfinished + self._decoder.decode(data, final)
        unfinished = None if final else UNFINISHED.search(text)
        self._unfinished = unfinished[0] if unfinished else ""
        text = CONTROL.sub("", text.removesuffix(self._unfinished))
        *ended, last = text.split("\r")
        if ended:
            ended[0] = "".join([*self._parts, ended[0]])
            self._before = next(filter(None, reversed(ended)), self._before)
            self._parts, self._start = [], ""
        self._parts.append(last)
        if len(self._start) < LONGEST_PREFIX:
            self._start += last[:LONGEST_PREFIX]

    def start(self) -> str:
        """The first characters of what is visible now."""
        return self._start or self._before

    def text(self) -> str:
        """What is visible in the end."""
        self.add(b"", final=True)
        return "".join(self._parts) or self._before


def _more(source: int) -> bytes:
    try:
        return os.read(source, 65536)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EBADF):  # Linux: the last process on the other side of the pty is gone
            return b""
        raise


def _ignore(text: str) -> None:
    pass
