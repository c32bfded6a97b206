"""One-shot pruning of half of the weights of all layers; the examples are the calibration set (tasks.sparsity).

These methods are for compression, not adaptation; their papers report mostly 50 % sparsity.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tasks.comparison.system import Answer, FitData, Fitted, System, unedited
from tasks.sparsity.weight_pruning import Method, sparse

SPARSITY = 0.5


def weights_pruned(method: Method) -> System:
    """The system of a method. Magnitude uses no examples; no method uses labels."""

    def fit(fit_data: FitData) -> Fitted:
        examples = 0 if method == "magnitude" else len(fit_data.examples.encoded)
        return Fitted(partial(_applied, fit_data, method), examples, 0, {"sparsity": SPARSITY})

    return fit


@contextmanager
def _applied(fit_data: FitData, method: Method) -> Iterator[Answer]:
    prompts = [row.prompt for row in fit_data.examples.encoded]
    with sparse(fit_data.loaded, prompts, method, SPARSITY), unedited(fit_data.stack) as answer:
        yield answer
