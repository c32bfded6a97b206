"""What computes parts of long work: in this process, or in a process of Ray."""

from collections.abc import Sequence
from typing import Any, Protocol


class Worker(Protocol):
    """Computes parts with a loaded model. A part is hashable and can be pickled; its value is a JSON value.

    A worker whose parts share work also has `together`, parts -> groups, and `compute_together`, a group -> values.
    """

    def compute(self, part: Any) -> Any:
        """The value of a part; it depends on neither process, order nor group."""


def groups_of(worker: Any, parts: Sequence[Any]) -> list[list[Any]]:
    """The parts in their order, in the groups in which the worker computes them."""
    groups: list[list[Any]] = worker.together(parts) if hasattr(worker, "together") else [[part] for part in parts]
    return groups


def values_of(worker: Any, group: Sequence[Any]) -> list[Any]:
    """The values of the parts of a group."""
    if hasattr(worker, "compute_together"):
        values: list[Any] = worker.compute_together(group)
        return values
    return [worker.compute(part) for part in group]
