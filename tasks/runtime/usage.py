"""What a step takes of its machine, sampled while it runs."""

import ctypes
import platform
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

INTERVAL = 5.0  # seconds between two samples


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Yields a dictionary that is complete once the body has ended.

    `seconds` it took; `peak_gb`, the largest resident memory of this process that a sample saw; `samples`, a list of
    milliseconds since 1970, and per cent of all processors and megabytes of memory in use on the whole machine.
    """
    found: dict[str, Any] = {"samples": [], "peak_gb": 0.0}
    over = threading.Event()
    process = psutil.Process()

    def sample() -> None:
        found["peak_gb"] = max(found["peak_gb"], round(process.memory_info().rss / 1e9, 3))
        used = round(psutil.virtual_memory().used / 1e6, 1)
        found["samples"].append([int(time.time() * 1000), psutil.cpu_percent(), used])

    def watch() -> None:
        while not over.wait(INTERVAL):
            sample()

    psutil.cpu_percent()  # the first call has nothing to compare with
    started = time.monotonic()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        if not found["samples"]:  # over sooner than the first one was due
            sample()
        found["seconds"] = round(time.monotonic() - started, 3)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Yields a dictionary whose `peak_gb` is, at the end, the largest resident memory that the body had.

    What was freed before it is given back to the system first; where there is no /proc, it is the peak of the process.
    """
    found = {"peak_gb": 0.0}
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the high-water mark starts anew
    try:
        yield found
    finally:
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        peak = marks[0] if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found["peak_gb"] = round(peak / 1e9, 2)
