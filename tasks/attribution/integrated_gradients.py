"""Integrated gradients of the rows of gate_proj (2507.09185 Eq. 4 and 5), one layer's neurons scaled jointly.

The gate pre-activation g_j = w_j . x is linear in the row w_j and x does not depend on it, so the path alpha * w_j is
the path alpha * g_j at all positions at once, and with a factor s_j on g_j

    IG_j = w_j . int_0^1 dF/dw_j(alpha w) da = int_0^1 dF/ds_j(alpha 1) da.

F is the mean over the adaptation prompts of the logit of the token that the full model ranks first after the prompt.
No weight gradient and no copy of a weight is needed, and no label is used.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.attribution.quadrature import Integral, adaptive, riemann_right
from tasks.models.packing import Pack
from tasks.models.stack import DecoderStack, Residuals
from tasks.pipeline.errors import InputError
from tasks.pipeline.settings import Attribution

TARGET = "largest logit over the vocabulary at the last prompt position, token fixed at the full model"


class LayerPath:
    """F along the path of one layer at a time, for a set of prompts.

    Args:
        sequences: token ids of each prompt.
        max_tokens: how many tokens (nodes x prompt tokens) one backward pass may hold in memory.
    """

    def __init__(self, stack: DecoderStack, sequences: Sequence[Sequence[int]], *, max_tokens: int = 1280):
        self._stack = stack
        self._max_tokens = max_tokens
        self._prompts = len(sequences)
        units = [[(sequence, [len(sequence) - 1])] for sequence in sequences]
        self._residuals = [stack.clean(packed) for packed in stack.pack(units, max_tokens=max_tokens)]
        self._targets = [_top_tokens(residuals) for residuals in self._residuals]

    def evaluate(self, layer: int, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """F and dF/ds at s = alpha * 1 for each alpha: float64 [alphas] and [alphas, d_ff], on the CPU."""
        values = torch.zeros(len(alphas), dtype=torch.float64)
        gradients = torch.zeros(len(alphas), self._stack.d_ff, dtype=torch.float64)
        for residuals, targets in zip(self._residuals, self._targets, strict=True):
            size = max(1, self._max_tokens // len(residuals.pack.tokens))
            for start in range(0, len(alphas), size):
                part = slice(start, start + size)
                scale = self._ones(len(alphas[part]))
                scale.mul_(scale.new_tensor(alphas[part])[:, None]).requires_grad_(True)
                totals = _target_logits(self._stack.scaled(residuals, layer, scale), targets).sum(1)
                values[part] += totals.detach().double().cpu()
                gradients[part] += torch.autograd.grad(totals.sum(), scale)[0].double().cpu()
        return values / self._prompts, gradients / self._prompts

    def at_one(self) -> tuple[Tensor, Tensor]:
        """F and dF/ds of every layer at s = 1, the unedited model: float64 scalar and [layers, d_ff].

        One backward pass serves all layers.
        """
        value = torch.zeros((), dtype=torch.float64)
        gradients = torch.zeros(len(self._stack), self._stack.d_ff, dtype=torch.float64)
        for residuals, targets in zip(self._residuals, self._targets, strict=True):
            scale = self._ones(len(self._stack))[None].requires_grad_(True)
            total = _target_logits(self._stack.scaled_everywhere(residuals, scale), targets).sum()
            value += total.detach().double().cpu()
            gradients += torch.autograd.grad(total, scale)[0][0].double().cpu()
        return value / self._prompts, gradients / self._prompts

    def _ones(self, rows: int) -> Tensor:
        return torch.ones(rows, self._stack.d_ff, dtype=self._stack.model.dtype, device=self._stack.device)


def _target_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """[..., R, vocabulary] and int64 [R] -> [..., R]."""
    return logits.gather(-1, targets.expand(logits.shape[:-1])[..., None])[..., 0]


def _top_tokens(residuals: Residuals) -> Tensor:
    """For each read of the pack, the token with the largest logit: int64 [R]."""
    if not torch.isfinite(residuals.logits).all():
        raise InputError("model", "its logits are NaN or infinite on the adaptation prompts")
    _one_prompt_per_read(residuals.pack)
    return residuals.logits.argmax(-1)


def _one_prompt_per_read(packed: Pack) -> None:
    if len(packed.reads) != len(packed.units):
        raise InputError("adaptation", "two of the adaptation prompts are the same")


def layer_scores(path: LayerPath, layer: int, one: tuple[Tensor, Tensor], settings: Attribution) -> Integral:
    """The scores of one layer's neurons by the quadrature that `settings` names; `one` is `path.at_one()`."""

    def evaluate(alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        return path.evaluate(layer, alphas)

    at_one = one[0], one[1][layer]
    if settings.quadrature == "riemann_right":
        return riemann_right(evaluate, at_one, settings.steps)
    return adaptive(evaluate, at_one, tolerance=settings.tolerance, max_nodes=settings.max_nodes)
