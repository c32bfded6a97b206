"""Scores of single weights, and the masks of the weights that a sparsity removes. Tensors only.

A mask is boolean [d_out, d_in] and true where a weight is removed. Every selection removes an exact number of weights,
those with the smallest scores; weights with equal scores are removed in their order in the group. The published code of
magnitude pruning, RIA and SparseGPT removes every weight whose score is at most the one at sorted position int(s n):
one weight more, or several with ties.
"""

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.runtime.errors import InputError

RIA_POWER = 0.5  # a in RIA's formula; the value of its paper and its code


class NOfM(NamedTuple):
    """N:M sparsity: n of every m consecutive weights of a row are kept (2:4, 4:8)."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


Target = float | NOfM


def check_target(target: Target) -> None:
    """Raises InputError unless the target is a sparsity in (0, 1) or an N:M with 0 < n < m."""
    if isinstance(target, NOfM):
        if not 0 < target.n < target.m:
            raise InputError("sparsity", f"{target}: n:m needs 0 < n < m")
    elif not 0 < target < 1:
        raise InputError("sparsity", f"{target} is not between 0 and 1")


def magnitude(weight: Tensor) -> Tensor:
    """|W|, [d_out, d_in]."""
    return weight.abs()


def wanda(weight: Tensor, squared_norms: Tensor) -> Tensor:
    """|W_ij| ||X_j||_2, [d_out, d_in] (Sun et al. 2024, arXiv 2306.11695, Eq. 1).

    Args:
        weight: [d_out, d_in].
        squared_norms: [d_in], ||X_j||_2^2 of each input over the tokens of a sequence, mean over the sequences.
    """
    return weight.abs() * squared_norms.sqrt()


def ria(weight: Tensor, squared_norms: Tensor) -> Tensor:
    """(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) ||X_j||_2^a, [d_out, d_in].

    "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models" (Zhang et al., ICLR 2024).
    The paper's channel permutation for N:M is in `tasks.sparsity.channels`. 0/0, for a row or column of zeros, is 0.

    Args:
        weight: [d_out, d_in].
        squared_norms: as for `wanda`.
    """
    size = weight.abs()
    tiny = torch.finfo(size.dtype).tiny
    relative = size / size.sum(0, keepdim=True).clamp(min=tiny) + size / size.sum(1, keepdim=True).clamp(min=tiny)
    return relative * squared_norms.sqrt() ** RIA_POWER


def removed(sparsity: float, n: int) -> int:
    """int(sparsity * n) in decimal arithmetic: 29 for 0.29 and 100, whose float product is below 29."""
    return int(Fraction(str(float(sparsity))) * n)


def smallest(score: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest along the last dimension; of equal scores, the first. Same shape as `score`."""
    order = score.sort(dim=-1, stable=True).indices[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order, True)


def by_row(score: Tensor, sparsity: float) -> Tensor:
    """Removes int(s d_in) weights of every row: the comparison group of Wanda (section 3)."""
    return smallest(score, removed(sparsity, score.shape[1]))


def by_matrix(score: Tensor, sparsity: float) -> Tensor:
    """Removes int(s d_out d_in) weights of the whole matrix: magnitude pruning and RIA."""
    return smallest(score.flatten(), removed(sparsity, score.numel())).view_as(score)


def by_group(score: Tensor, pattern: NOfM) -> Tensor:
    """Removes m - n of every m consecutive weights of a row.

    Raises:
        InputError: m does not divide the number of inputs.
    """
    check_groups(score.shape[1], pattern)
    return smallest(score.view(len(score), -1, pattern.m), pattern.m - pattern.n).view_as(score)


def check_groups(inputs: int, pattern: NOfM) -> None:
    """Raises InputError unless m divides the number of inputs."""
    if inputs % pattern.m:
        raise InputError("sparsity", f"{pattern} needs layers with a multiple of {pattern.m} inputs, not {inputs}")
