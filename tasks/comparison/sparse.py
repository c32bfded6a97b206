"""Half of the weights of all layers removed in one shot; the examples are the calibration set (tasks.sparsity).

These methods were made to shrink a model, not to adapt it; 50 % is the sparsity that their papers report most.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tasks.comparison.system import Answer, Fitted, Ground, System, unedited
from tasks.sparsity.weight_pruning import Method, sparse

SPARSITY = 0.5


def weights_pruned(method: Method) -> System:
    """The system of a method; magnitude looks at no example, and none at a label."""

    def fit(ground: Ground) -> Fitted:
        examples = 0 if method == "magnitude" else len(ground.examples.encoded)
        return Fitted(partial(_applied, ground, method), examples, 0, {"sparsity": SPARSITY})

    return fit


@contextmanager
def _applied(ground: Ground, method: Method) -> Iterator[Answer]:
    prompts = [row.prompt for row in ground.examples.encoded]
    with sparse(ground.loaded, prompts, method, SPARSITY), unedited(ground.stack) as answer:
        yield answer
