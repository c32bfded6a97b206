"""Long work in parts: computed here or by several workers on Ray, each part in the journal once it is done."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from tasks.pipeline.errors import InputError
from tasks.pipeline.journal import Journal

WORKERS = "DSM_WORKERS"


class Worker(Protocol):
    """Has a model loaded and computes parts. A part is hashable and pickles; a value is a JSON value.

    One whose parts share work also has `together`, parts -> groups of them, and `compute_together`, a group -> values.
    """

    def compute(self, part: Any) -> Any:
        """The value of a part, the same in whatever process, order and group."""


def groups_of(worker: Any, parts: Sequence[Any]) -> list[list[Any]]:
    """The parts in their order, in the groups in which the worker computes them."""
    found: list[list[Any]] = worker.together(parts) if hasattr(worker, "together") else [[part] for part in parts]
    return found


def values_of(worker: Any, group: Sequence[Any]) -> list[Any]:
    """The values of the parts of a group."""
    if hasattr(worker, "compute_together"):
        found: list[Any] = worker.compute_together(group)
        return found
    return [worker.compute(part) for part in group]


class Crew(Protocol):
    """Computes parts somewhere."""

    def ask(self, name: str) -> Any:
        """An attribute of the worker."""

    def compute(self, parts: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Parts with their values, as they are done."""


class _Here:
    def __init__(self, make: Callable[[], Worker]):
        self._worker = make()

    def ask(self, name: str) -> Any:
        return getattr(self._worker, name)

    def compute(self, parts: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        for group in groups_of(self._worker, parts):
            yield from zip(group, values_of(self._worker, group), strict=True)


@contextmanager
def crew(make: Callable[[], Worker]) -> Iterator[Crew]:
    """Whoever computes: this process, or as many workers on Ray as DSM_WORKERS says. The values are the same.

    Raises:
        InputError: DSM_WORKERS or RAY_ADDRESS is wrong, or Ray is not installed.
    """
    number = worker_count()
    if not number:
        yield _Here(make)
        return
    from tasks.pipeline.cluster import on_ray

    with on_ray(make, number) as found:
        yield found


def worker_count() -> int:
    """How many workers on Ray: the variable DSM_WORKERS; 0, the default, is this process without Ray.

    Raises:
        InputError: it is not a whole number from 0.
    """
    text = os.environ.get(WORKERS) or "0"
    if not (text.isascii() and text.isdigit()):
        raise InputError(WORKERS, f"must be a whole number from 0, not {text!r}")
    return int(text)


def _silently(done: int) -> None:
    pass


def run_parts(
    workers: Crew, parts: Sequence[Any], journal: Journal, advance: Callable[[int], None] = _silently
) -> dict[Any, Any]:
    """The values of the parts, in their order; those that the journal has are not computed again.

    Args:
        advance: called with the number of parts that are done.
    """
    missing = [part for part in parts if str(part) not in journal.parts]
    advance(len(parts) - len(missing))
    for part, value in workers.compute(missing):
        journal.put(str(part), value)
        advance(1)
    return {part: journal.parts[str(part)] for part in parts}
