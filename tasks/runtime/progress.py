"""Progress with a time to go: a bar on a terminal, plain lines elsewhere (CI, cron, a log file)."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 20.0  # seconds between two plain lines


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`; `total` is in the same units."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as ToGo

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), ToGo())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total)
            yield lambda n: bar.advance(task, n)
        return

    start = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= EVERY and done < total:
            last = now
            to_go = f", about {(now - start) / done * (total - done):.0f} s to go" if done else ""
            print(f"{description}: {done}/{total}{to_go}", file=sys.stderr, flush=True)

    yield advance
    print(f"{description}: {done}/{total} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
