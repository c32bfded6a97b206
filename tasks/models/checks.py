"""Checks of a model before it is used, and messages for exceptions that libraries raise."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tasks.runtime.errors import InputError

# PyTorch has a class for a full GPU only; on a CPU it is a RuntimeError with one of these texts.
FULL_MEMORY = re.compile(r"out of memory|can(not|'t) allocate memory|not enough memory", re.IGNORECASE)


@contextmanager
def as_input_error(field: str, problem: str, consequence: str = "") -> Iterator[None]:
    """Turns an exception that a library raises inside into a message of one line: problem, exception, consequence.

    An InputError is passed on, since it says more. An out-of-memory error is passed on too, since the input is not at
    fault. Ctrl-C and the signals that end a step are not instances of Exception.

    Raises:
        InputError: an exception was raised inside.
    """
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if FULL_MEMORY.search(str(error)):
            raise
        raise InputError(field, f"{problem}: {type(error).__name__}: {error}{consequence}") from None


def check_finite(model: Any) -> None:
    """Refuses weights that are not finite: every score and prediction would be NaN.

    Raises:
        InputError: a weight is not finite; the message names the first one.
    """
    for name, tensor in model.named_parameters():
        # The sum needs no memory, and is finite only if all of its terms are.
        if tensor.sum().isfinite() or tensor.isfinite().all():
            continue
        held = "NaN" if tensor.isnan().any() else "infinite values"
        count = int((~tensor.isfinite()).sum())
        raise InputError(
            "model", f"{type(model).__name__}: the weights of {name} hold {held} ({count} of {tensor.numel()})"
        )


def check_logits(model: Any, logits: torch.Tensor) -> None:
    """Refuses a model whose logits, [.., vocabulary], do not distinguish tokens: nothing could be measured.

    Raises:
        InputError: the logits are not finite, or all the same.
    """
    kind = type(model).__name__
    if not logits.isfinite().all():
        raise InputError(
            "model",
            f"{kind}: its logits are NaN or infinite, although its weights are finite: they are too large for float32",
        )
    if logits.min() == logits.max():
        zeros = [name for name, tensor in model.named_parameters() if not tensor.any()]
        reason = f"; only zeros are in {listed(zeros)}" if zeros else ""
        raise InputError("model", f"{kind}: it gives every token the same logit, {float(logits.max()):g}{reason}")


def listed(names: list[str], count: int = 12) -> str:
    """The names, the first `count` of them where there are more."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
