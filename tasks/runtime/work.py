"""Long work in parts, computed in this process or by workers on Ray. Finished parts are written to the journal."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from tasks.runtime.errors import InputError
from tasks.runtime.journal import Journal
from tasks.runtime.worker import Worker, groups_of, values_of

WORKERS = "DSM_WORKERS"


class WorkerPool(Protocol):
    """Workers in this process or elsewhere."""

    def attribute(self, name: str) -> Any:
        """An attribute of the worker."""

    def compute(self, parts: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Parts with their values, in the order in which they finish."""


class _LocalPool:
    def __init__(self, make: Callable[[], Worker]):
        self._worker = make()

    def attribute(self, name: str) -> Any:
        return getattr(self._worker, name)

    def compute(self, parts: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        for group in groups_of(self._worker, parts):
            yield from zip(group, values_of(self._worker, group), strict=True)


@contextmanager
def worker_pool(make: Callable[[], Worker]) -> Iterator[WorkerPool]:
    """This process, or DSM_WORKERS workers on Ray. The values are the same.

    Raises:
        InputError: DSM_WORKERS or RAY_ADDRESS is wrong, or Ray is not installed.
    """
    number = worker_count()
    if not number:
        yield _LocalPool(make)
        return
    from tasks.runtime.cluster import ray_pool

    with ray_pool(make, number) as pool:
        yield pool


def run_here(worker: Worker, parts: Sequence[Any], journal: Journal, **more: Any) -> dict[Any, Any]:
    """`run_parts` with an existing worker in this process."""
    return run_parts(_LocalPool(lambda: worker), parts, journal, **more)


def worker_count() -> int:
    """The number of workers on Ray, from DSM_WORKERS. 0, the default, means this process without Ray.

    Raises:
        InputError: DSM_WORKERS is not a whole number from 0.
    """
    text = os.environ.get(WORKERS) or "0"
    if not (text.isascii() and text.isdigit()):
        raise InputError(WORKERS, f"must be a whole number from 0, not {text!r}")
    return int(text)


def run_parts(
    workers: WorkerPool, parts: Sequence[Any], journal: Journal, advance: Callable[[int], None] = lambda done: None
) -> dict[Any, Any]:
    """The values of all parts, in order. Parts in the journal are not computed again.

    Args:
        advance: called with the number of newly finished parts.
    """
    missing = [part for part in parts if str(part) not in journal.parts]
    advance(len(parts) - len(missing))
    for part, value in workers.compute(missing):
        journal.put(str(part), value)
        advance(1)
    return {part: journal.parts[str(part)] for part in parts}
