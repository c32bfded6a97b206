"""Scores without an integral: the effect of removing one neuron, and the activity of a neuron."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tasks.method.integrated_gradients import LayerPath
from tasks.models.memory import room
from tasks.models.stack import DecoderStack, Projection
from tasks.models.sweep import logits_without


def single(path: LayerPath, layer: int) -> Tensor:
    """F(full model) - F(model without row j) for each row of a layer, float64 [width].

    It is the integrated gradient (2507.09185 Eq. 4) along the path of neuron j alone: with one neuron on the path,
    completeness gives the integral exactly. An interaction between neurons is part of the score of each of them, so the
    sum of a layer's scores is not the effect of the whole layer.

    The cost is one run of the layers above for each neuron and prompt. A model with 30 layers of 1536 neurons needs
    46 080 runs, fifty times the work of ten nodes for each layer. Batching them saves little.
    """
    stack = path.stack
    width = stack.width(path.projection)
    scores = torch.zeros(width, dtype=torch.float64)
    for residuals, target in path.passes:
        full = target(residuals.logits).double().sum().cpu()
        size = max(1, room(stack.model).forward_tokens // len(residuals.pack.tokens))
        for start in range(0, width, size):
            alone = [np.array([j]) for j in range(start, min(start + size, width))]
            silenced = torch.cat(list(logits_without(stack, residuals, layer, alone, path.projection)))
            scores[start : start + size] += full - target(silenced).double().sum(1).cpu()
    return scores / path.prompts


@torch.no_grad()
def activation(stack: DecoderStack, sequences: Sequence[Sequence[int]], projection: Projection) -> Tensor:
    """The activity of each neuron: mean over the prompts of the mean over their positions, float64 [layers, width].

    For rows of gate_proj and up_proj, it is the mean of |h_j|, h = act(g) * u (u = 1 without a gate), which depends on
    both. For rows of down_proj, it is the mean of their absolute output. It does not use the answers, and is a baseline
    for the methods that do.
    """
    means = torch.zeros(len(stack), stack.width(projection), dtype=torch.float64)

    def keep(at: int, values: Tensor) -> None:
        means[at] += values.abs().double().mean(0).cpu() / len(sequences)

    # The model's own forward pass: the packed one skips tokens that no later layer uses.
    handles = [mlp.watch(projection, partial(keep, at)) for at, mlp in enumerate(stack.mlps)]
    try:
        for sequence in sequences:
            stack.model(input_ids=torch.tensor([list(sequence)], device=stack.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return means
