"""Progress with the remaining time: a bar on a terminal, plain lines elsewhere (CI, cron, a log file).

The plain lines are our own: without a terminal, rich prints nothing before the end, and tqdm rewrites one line.
"""

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
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
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
            remaining = f", about {(now - start) / done * (total - done):.0f} s to go" if done else ""
            print(f"{description}: {done}/{total}{remaining}", file=sys.stderr, flush=True)

    yield advance
    print(f"{description}: {done}/{total} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
