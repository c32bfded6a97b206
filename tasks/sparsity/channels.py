"""RIA's channel permutation for N:M: an order of the input channels in which more of the score can be kept.

N:M removes weights from groups of M consecutive inputs. The order of the inputs is arbitrary, since W x = W[:, order]
x[order], so a group can consist of any inputs. Here, the mask is returned in the original order of the weights: the
layer does not change, except that other weights are zero.

So the stored weights are not N:M for hardware that multiplies N:M matrices faster: the columns of W and its inputs have
to be permuted by the order. gate_proj and up_proj can write their outputs in the order of down_proj at no cost. The
other matrices share their inputs or get them by heads, so each of their orders needs a gather at run time.

"Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models" (Zhang et al., ICLR 2024), section
4.2: `reallocated` is its heuristic channel reallocation, `refined` its linear sum assignment, with one round over the
slots as in its code.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tasks.sparsity.metrics import NOfM, by_group, check_groups

ELEMENTS = 1 << 24  # the number of differences that `exchanged` holds at once


def by_permuted_group(score: Tensor, pattern: NOfM) -> tuple[Tensor, Tensor]:
    """Mask [d_out, d_in] in the order of the weights, and the order [d_in] in which it removes M - N of every M inputs.

    Raises:
        InputError: m does not divide the number of inputs.
    """
    order = refined(score, reallocated(score, pattern), pattern)
    mask = torch.empty_like(score, dtype=torch.bool)
    mask[:, order] = by_group(score[:, order], pattern)
    return mask, order


def reallocated(score: Tensor, pattern: NOfM) -> Tensor:
    """An order, int64 [d_in]: the inputs, sorted by the sum of their scores, ascending, are distributed to the groups.

    Slot s of the groups gets the s-th of M equal parts of the sorted inputs, every second part in descending order, so
    that each group has inputs of all sizes.

    Raises:
        InputError: m does not divide the number of inputs.
    """
    check_groups(score.shape[1], pattern)
    slots = score.sum(0, dtype=torch.float64).sort(stable=True).indices.view(pattern.m, -1)
    slots[1::2] = slots[1::2].flip(1)
    return slots.T.flatten()


def refined(score: Tensor, order: Tensor, pattern: NOfM) -> Tensor:
    """An order that keeps at least as much: for each slot in turn, inputs are exchanged between the groups."""
    for slot in range(pattern.m):
        order = exchanged(score, order, pattern, slot)
    return order


def exchanged(score: Tensor, order: Tensor, pattern: NOfM, slot: int) -> Tensor:
    """The order that keeps most of the score among those that exchange the inputs of one slot between the groups.

    In each row, a group keeps its n largest inputs of the other slots. If the input in this slot is larger than the
    smallest of these, it replaces it. The gain does not depend on the other groups, so the best exchange is a linear
    sum assignment, which is solved exactly.
    """
    groups = order.view(-1, pattern.m).clone()
    others = [s for s in range(pattern.m) if s != slot]
    smallest_kept = score[:, groups[:, others]].topk(pattern.n, dim=-1).values[..., -1]  # [d_out, groups]
    candidates = score[:, groups[:, slot]]
    rows = max(1, ELEMENTS // len(groups) ** 2)
    gain = score.new_zeros(len(groups), len(groups), dtype=torch.float64)
    for kept, candidate in zip(torch.split(smallest_kept, rows), torch.split(candidates, rows), strict=True):
        gain += (candidate[:, None, :] - kept[:, :, None]).clamp_(min=0).sum(0)
    _, chosen = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
    groups[:, slot] = groups[torch.as_tensor(chosen, device=groups.device), slot]
    return groups.flatten()
