"""Integrated Hessians: how much of a neuron's score is its own, and how much it shares with each other neuron.

Integrated Hessians are the integrated gradients of integrated gradients (Janizek, Sturmfels, Lee 2021, arXiv
2002.04138, Eq. 5 and 6). Along the path of one layer, with a factor s_j on what row j gives and a reference of 0,

    G_ij = int_0^1 u (-ln u) d2F/ds_i ds_j (u 1) du                                       for i != j,
    G_ii = int_0^1 (-ln u) dF/ds_i (u 1) du + int_0^1 u (-ln u) d2F/ds_i^2 (u 1) du,

since the product u of two independent uniform numbers has the density -ln u. G is symmetric, and its rows over all
neurons of the layer add up to the scores: sum_j G_ij = IG_i. So IG_i - G_ii is what neuron i shares with all others,
although only the columns of a few neurons are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.method.integrated_gradients import LayerPath
from tasks.models.memory import room

STEP = 1 / 128  # of the central differences, as exact as they are in float32; a power of 2, so that u +- STEP is exact
NODES = 8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interactions:
    """Interactions of some neurons of a layer, means over the prompts.

    Attributes:
        values: G, float64 [k, k], symmetric up to the error of the differences.
        scores: the neurons' integrated gradients by the same nodes, float64 [k].
    """

    values: Floats
    scores: Floats

    @property
    def alone(self) -> Floats:
        """What each neuron contributes by itself, G_ii, float64 [k]."""
        return self.values.diagonal().copy()

    @property
    def shared(self) -> Floats:
        """What each neuron shares with all other neurons of the layer, also those that are not here, float64 [k]."""
        return self.scores - self.alone


def interactions(path: LayerPath, layer: int, neurons: Sequence[int], nodes: int = NODES) -> Interactions:
    """The integrated Hessians of pairs of neurons of one layer.

    The integrals over u = t^2 are taken by the Gauss-Legendre rule in t, where -ln u du = -4 t ln(t) dt is bounded. The
    second derivatives are central differences of gradients: 2 k + 1 gradients for each node and prompt.

    Args:
        path: of the projection whose rows are the neurons.
        neurons: indices of k rows.
        nodes: of the rule.

    Example:
        >>> result = interactions(LayerPath(stack, prompts), 12, [7, 300])  # doctest: +SKIP
        >>> result.values.shape  # doctest: +SKIP
        (2, 2)
    """
    chosen = torch.as_tensor(list(neurons))
    points, weights = np.polynomial.legendre.leggauss(nodes)
    t, weights = (points + 1) / 2, weights / 2
    values = torch.zeros(len(chosen), len(chosen), dtype=torch.float64)
    scores, own = torch.zeros(2, len(chosen), dtype=torch.float64)
    for at, weight in zip(t, weights, strict=True):
        gradients = _gradients(path, layer, chosen, float(at**2))
        second = (gradients[1::2] - gradients[2::2]).T / (2 * STEP)  # row i, column j: d2F/ds_i ds_j
        log = -2 * np.log(at)
        scores += weight * 2 * at * gradients[0]
        own += weight * 2 * at * log * gradients[0]
        values += weight * 2 * at * log * at**2 * second
    return Interactions((values + torch.diag(own)).numpy(), scores.numpy())


def _gradients(path: LayerPath, layer: int, chosen: Tensor, u: float) -> Tensor:
    """dF/ds of the chosen neurons at u 1, then at u 1 + STEP e_j and u 1 - STEP e_j for each of them in turn.

    Returns:
        float64 [1 + 2 k, k] on the CPU.
    """
    stack = path.stack
    factors = torch.full((1 + 2 * len(chosen), stack.width(path.projection)), u, device=stack.device, dtype=stack.dtype)
    for number, neuron in enumerate(chosen.tolist()):
        factors[1 + 2 * number, neuron] += STEP
        factors[2 + 2 * number, neuron] -= STEP
    gradients = torch.zeros(len(factors), len(chosen), dtype=torch.float64)
    for residuals, target in path.passes:
        size = max(1, room(stack.model).backward_tokens // len(residuals.pack.tokens))
        for rows in torch.split(torch.arange(len(factors)), size):
            factor = factors[rows].clone().requires_grad_()
            with torch.enable_grad():
                total = target(stack.scaled(residuals, layer, factor, path.projection)).sum()
            gradients[rows] += torch.autograd.grad(total, factor)[0][:, chosen].double().cpu()
    return gradients / path.prompts
