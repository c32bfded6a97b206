"""Checks that a `DecoderStack` computes the same logits as its model, before anything is measured with it."""

from typing import Any

import torch
from torch import Tensor

from tasks.models.checks import check_logits
from tasks.runtime.errors import InputError

LARGEST = 1e-3  # relative difference


@torch.no_grad()
def check_view(stack: Any) -> None:
    """Compares a packed run, whole and from the first and last layer, with the plain model on two short sequences.

    Raises:
        InputError: the logits differ, are not finite, or are all the same.
    """
    vocabulary = stack.config.vocab_size
    shared = [(7 * i + 3) % vocabulary for i in range(4)]
    sequences = [[*shared, 5], [*shared, 1, 2]]
    [packed] = stack.pack([[(sequence, [len(sequence) - 1])] for sequence in sequences])
    plain = torch.stack(
        [stack.model(torch.tensor([s], device=stack.device), use_cache=False).logits[0, -1] for s in sequences]
    )
    check_logits(stack.model, plain)
    kind = type(stack.model).__name__
    unedited = torch.ones(1, stack.d_ff, device=stack.device, dtype=stack.dtype)
    residuals = stack.clean(packed)
    for index, layer in enumerate(stack.layers):
        if stack.mlps[index].module is layer:  # an MLP without a module of its own was not compared alone
            entering, expected = stack.entering(residuals, index), residuals.inputs[index + 1]
            leaving = stack.leaving_scaled(index, entering, unedited, "gate_proj", None)
            if not (gap := _gap(leaving, expected)) < LARGEST:
                raise InputError(
                    "model",
                    f"{kind}: layer {index} does not add down_proj(act(first)) to the residual after attention "
                    f"(relative difference {gap:.1e}); this family is not supported",
                )
    for logits in (residuals.logits, *(stack.scaled(residuals, i, unedited)[0] for i in (0, len(stack) - 1))):
        if not (gap := _gap(logits.to(plain.device), plain)) < LARGEST:
            raise InputError(
                "model",
                f"{kind}: re-running its layers does not give its logits (relative difference {gap:.1e}); this family "
                "is not supported",
            )


def _gap(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))
