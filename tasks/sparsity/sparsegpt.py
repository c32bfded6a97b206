"""SparseGPT (Frantar, Alistarh 2023, arXiv 2301.00774): masks and updated weights from the Hessian of the inputs.

Removing weights from a row w of W changes the layer's outputs by ||X^T (w - w')||^2 over the calibration tokens, a
quadratic with Hessian H = 2 X X^T that all rows share. Columns are processed from left to right; the weights to the
right of a removed one are updated to compensate for it (optimal brain surgeon).
"""

import torch
from torch import Tensor

from tasks.runtime.errors import InputError
from tasks.sparsity.metrics import NOfM, Target, check_groups, removed, smallest

DAMPING = 0.01  # this multiple of the mean of H's diagonal is added to the diagonal
BLOCK = 128  # columns whose mask is chosen together and whose updates are applied to later columns together


def prune(weight: Tensor, hessian: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Mask and new weights, both [d_out, d_in]; removed weights are zero.

    This is Algorithm 1 of the paper, with the mask chosen over all rows of a block of columns, as in its code. In all,
    int(s d_out d_in) weights are removed, in equal proportion from each block. The weights of an input that is never
    active are set to zero first, so the result may have more zeros than the mask.

    Args:
        weight: [d_out, d_in], float32 or float64; not changed.
        hessian: [d_in, d_in], H up to a factor; not changed.

    Raises:
        InputError: m does not divide d_in, or H has no Cholesky factor.
    """
    inputs = weight.shape[1]
    block = BLOCK
    if isinstance(target, NOfM):
        check_groups(inputs, target)
        block = max(BLOCK - BLOCK % target.m, target.m)
    hessian, dead = damped(hessian)
    weight = weight.masked_fill(dead, 0)
    factor = inverse_factor(hessian).to(weight.dtype)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        part, u = weight[:, start:end], factor[start:end, start:end]
        if not isinstance(target, NOfM):
            count = removed(target, len(weight) * end) - removed(target, len(weight) * start)
            mask[:, start:end] = smallest(saliency(part, u).flatten(), count).view_as(part)
        errors = torch.zeros_like(part)
        for j in range(end - start):
            if isinstance(target, NOfM) and j % target.m == 0:
                group = slice(j, j + target.m)
                scores = saliency(part[:, group], u[group, group])
                mask[:, start:end][:, group] = smallest(scores, target.m - target.n)
            errors[:, j] = part[:, j] * mask[:, start + j] / u[j, j]
            part[:, j:].addr_(errors[:, j], u[j, j:], alpha=-1)
        weight[:, end:] -= errors @ factor[start:end, end:]
    return mask, weight.masked_fill_(mask, 0)  # the update leaves rounding errors in removed weights


def saliency(weight: Tensor, factor: Tensor) -> Tensor:
    """W_ij^2 / U_jj^2, [d_out, columns]: U_jj^2 is [H^-1]_jj without the columns left of j (section 3.2)."""
    return weight**2 / factor.diagonal() ** 2


def damped(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """H + 0.01 mean(diag H) I in float64, with 1 on the diagonal of inputs that are never active; their mask [d_in].

    float64 is needed since H is inverted: with a few large features, its condition number is near 1e5.
    """
    hessian = hessian.double()
    dead = hessian.diagonal() == 0
    hessian = hessian + torch.diag(dead.double())
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), device=hessian.device), dead


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U with H^-1 = U^T U, [d_in, d_in]. Row j is used in the j-th step of the elimination.

    H = R R^T with upper triangular R is a Cholesky factorisation of H from the last row upwards, and U = R^-1. So it is
    not necessary to compute and factorise H^-1.

    Raises:
        InputError: H is not positive definite.
    """
    lower, info = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if int(info):
        raise InputError("calibration", "the Hessian of its inputs is not positive definite: are there NaN in them?")
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor
