"""Edits of the rows of a projection, and their effect on the output of an MLP, with or without experts."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def edited(rows: Tensor, scale: Tensor, added: Tensor | None) -> Tensor:
    """The output of a projection, [.., tokens, width], after an edit of its rows: [C, tokens, width]."""
    scaled = rows * scale.to(rows.device)[:, None]
    return scaled if added is None else scaled + added.to(rows.device)


def taken_off(
    full: Tensor, sets: Sequence[np.ndarray], share: Callable[[Tensor, np.ndarray], Tensor]
) -> Sequence[Tensor]:
    """The output of an MLP without each set of neurons.

    The contribution of silent neurons is subtracted from the full output. If a set contains the set before it, only the
    contribution of the added neurons is subtracted, from the output of that set.

    Args:
        full: the output with all neurons.
        share: (an output, some neurons) -> that output without the contribution of these neurons.
    """
    results: list[Tensor] = []
    before, last = np.array([], dtype=np.int64), full
    for neurons in sets:
        if not np.isin(before, neurons).all():
            before, last = np.array([], dtype=np.int64), full
        added = np.setdiff1d(neurons, before)
        before, last = neurons, share(last, added) if len(added) else last
        results.append(last)
    return results


def without_rows(full: Tensor, sets: Sequence[np.ndarray]) -> Sequence[Tensor]:
    """The output of an MLP, [.., d_model], without each set of rows of down_proj."""
    return [full.index_fill(-1, torch.as_tensor(rows, device=full.device), 0) for rows in sets]
