"""Shapley values of a layer's neurons, estimated by Owen's sampling along the path.

The Shapley value of neuron j is its mean marginal contribution to F over all orders in which the neurons are added,

    phi_j = int_0^1 E[F(S + j) - F(S - j)] da,    S: each neuron kept with probability a

(Owen 1972, the multilinear extension). With thousands of neurons, a run for each marginal contribution is too
expensive. Here one gradient per sampled S gives the contributions of all neurons to first order: dF/ds_j for a factor
s_j on h_j, the product of act(gate) and up, which is 0 without the neuron and 1 with it. The samples are pairs, S at a
and its complement at 1 - a, over the midpoints of equal parts of [0, 1]. A pair is exact if F is quadratic in the
factors. The error has two parts: the higher orders of the layers above, and the variance over the samples.

Unlike for the integral, the sum of the estimates need not be F(1) - F(0): the gap contains both errors.
"""

import numpy as np
import torch

from tasks.method.integrated_gradients import LayerPath
from tasks.method.quadrature import Integral
from tasks.models.memory import room

SEED = 20250709  # the samples of a layer depend only on this and its index


def kept_neurons(width: int, samples: int, layer: int) -> np.ndarray:
    """The sampled sets S, float64 [samples, width] of 0 and 1; sets k and samples - 1 - k are complements."""
    draws = np.random.default_rng([SEED, layer]).uniform(size=((samples + 1) // 2, width))
    alphas = (np.arange(samples) + 0.5) / samples
    first = draws < alphas[: len(draws), None]
    return np.concatenate([first, ~first[: samples // 2][::-1]]).astype(np.float64)


def shapley(path: LayerPath, layer: int, samples: int) -> Integral:
    """First-order Shapley values of the neurons of one layer, means over the prompts.

    Args:
        path: of up_proj, where a factor on a row is a factor on h; or of down_proj.
        samples: the number of sets S; each needs one gradient.
    """
    stack = path.stack
    width = stack.width(path.projection)
    kept = torch.from_numpy(kept_neurons(width, samples, layer)).to(stack.device, stack.dtype)
    scores, difference = torch.zeros(width, dtype=torch.float64), 0.0
    for residuals, target in path.passes:
        size = max(1, room(stack.model).backward_tokens // len(residuals.pack.tokens))
        for part in torch.split(kept, size):
            factor = part.clone().requires_grad_()
            with torch.enable_grad():
                total = target(stack.scaled(residuals, layer, factor, path.projection)).sum()
            scores += torch.autograd.grad(total, factor)[0].double().sum(0).cpu()
        with torch.no_grad():
            none = target(stack.scaled(residuals, layer, torch.zeros_like(kept[:1]), path.projection))
        difference += float(target(residuals.logits).double().sum() - none.double().sum())
    scores /= samples * path.prompts
    difference /= path.prompts
    gap = float(scores.sum()) - difference
    return Integral(scores, difference, gap, abs(gap), samples)
