"""RIA's channel permutation for N:M: input channels in an order in which more of the score can be kept.

N:M removes weights from groups of M consecutive inputs. The order of the inputs is arbitrary, since W x = W[:, order]
x[order], and so groups may be formed of any inputs. The mask is put back into the order of the weights here: the layer
computes what it did, with zeros at other places.

For hardware that multiplies N:M matrices faster, the weights as stored are not N:M: the columns of W have to be
permuted by the order, and its inputs with them. gate_proj and up_proj can give their outputs in the order of down_proj
at no cost. The other matrices have an order each for inputs that they share or that come in heads, which is a gather at
run time.

"Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models" (Zhang et al., ICLR 2024), section
4.2: `reallocated` is its heuristic channel reallocation, `refined` its linear sum assignment, one round over the slots
as in its code.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tasks.sparsity.metrics import NOfM, by_group, check_groups

ELEMENTS = 1 << 24  # of the differences that `refined` holds at once


def by_permuted_group(score: Tensor, pattern: NOfM) -> tuple[Tensor, Tensor]:
    """Mask [d_out, d_in] in the order of the weights, and the order [d_in] in which it removes M - N of every M.

    Raises:
        InputError: m does not divide the number of inputs.
    """
    order = refined(score, reallocated(score, pattern), pattern)
    mask = torch.empty_like(score, dtype=torch.bool)
    mask[:, order] = by_group(score[:, order], pattern)
    return mask, order


def reallocated(score: Tensor, pattern: NOfM) -> Tensor:
    """The inputs sorted by the sum of their scores, ascending, and dealt out to the groups: an order, int64 [d_in].

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
    """An order that keeps at least as much: the inputs of one slot after the other exchanged between the groups."""
    for slot in range(pattern.m):
        order = exchanged(score, order, pattern, slot)
    return order


def exchanged(score: Tensor, order: Tensor, pattern: NOfM, slot: int) -> Tensor:
    """The order that keeps most of the score among those that exchange the inputs of one slot between the groups.

    A group keeps of each row the n largest of its inputs in other slots or, where the input in this slot is larger than
    the smallest of these, that one instead. What it gains does not depend on the other groups, so that the best
    exchange is a linear sum assignment, solved exactly.
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
