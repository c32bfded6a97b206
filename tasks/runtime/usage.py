"""CPU and memory that a step uses, sampled while it runs.

`mlflow.enable_system_metrics_logging` takes the same samples, but only inside an active MLflow run. Steps run as stages
of DVC, without MLflow and before the flow starts a run. So they take samples here, and the run logs them later.
"""

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
def measure_usage() -> Iterator[dict[str, Any]]:
    """Yields a dictionary that is filled when the body ends.

    `seconds`: the duration. `peak_gb`: the largest sampled resident memory of this process. `samples`: a list of
    [milliseconds since 1970, CPU use of the machine in per cent, memory in use on the machine in MB].
    """
    usage: dict[str, Any] = {"samples": [], "peak_gb": 0.0}
    stopped = threading.Event()
    process = psutil.Process()

    def sample() -> None:
        usage["peak_gb"] = max(usage["peak_gb"], round(process.memory_info().rss / 1e9, 3))
        used = round(psutil.virtual_memory().used / 1e6, 1)
        usage["samples"].append([int(time.time() * 1000), psutil.cpu_percent(), used])

    def run() -> None:
        while not stopped.wait(INTERVAL):
            sample()

    psutil.cpu_percent()  # the first call has nothing to compare with
    started = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        stopped.set()
        thread.join()
        if not usage["samples"]:  # shorter than one interval
            sample()
        usage["seconds"] = round(time.monotonic() - started, 3)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Yields a dictionary whose `peak_gb` is, at the end, the peak resident memory during the body.

    Freed memory is returned to the system first. Without /proc it is the peak of the whole process.
    """
    usage = {"peak_gb": 0.0}
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # resets the high-water mark
    try:
        yield usage
    finally:
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        peak = marks[0] if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        usage["peak_gb"] = round(peak / 1e9, 2)
