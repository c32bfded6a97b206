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

    def values(self, layer: int, alphas: Sequence[float]) -> list[float]:
        """F at each alpha."""
        with torch.no_grad():
            return self._run(layer, alphas)[0].tolist()

    def gradients(self, layer: int, alphas: Sequence[float]) -> Tensor:
        """dF/ds at s = alpha * 1, float64 [alphas, d_ff]."""
        return self._run(layer, alphas, gradient=True)[1]

    def _run(self, layer: int, alphas: Sequence[float], *, gradient: bool = False) -> tuple[Tensor, Tensor]:
        """(F, dF/ds) in float64 on the CPU."""
        d_ff, dtype, device = self._stack.d_ff, self._stack.model.dtype, self._stack.device
        values = torch.zeros(len(alphas), dtype=torch.float64)
        gradients = torch.zeros(len(alphas), d_ff, dtype=torch.float64)
        for residuals, targets in zip(self._residuals, self._targets, strict=True):
            # Without gradients nothing is kept for the way back, and a run may be several times as large.
            room = self._max_tokens if gradient else 4 * self._max_tokens
            size = max(1, room // len(residuals.pack.tokens))
            for start in range(0, len(alphas), size):
                part = slice(start, start + size)
                scale = torch.tensor(alphas[part], dtype=dtype, device=device)[:, None].repeat(1, d_ff)
                scale.requires_grad_(gradient)
                logits = self._stack.edited(residuals, layer, scale)
                totals = logits.gather(2, targets.expand(len(scale), -1)[..., None]).sum((1, 2))
                values[part] += totals.detach().double().cpu()
                if gradient:
                    gradients[part] += torch.autograd.grad(totals.sum(), scale)[0].double().cpu()
        return values / self._prompts, gradients / self._prompts


def _top_tokens(residuals: Residuals) -> Tensor:
    """For each read of the pack, the token with the largest logit: int64 [R]."""
    if not torch.isfinite(residuals.logits).all():
        raise InputError("model", "its logits are NaN or infinite on the adaptation prompts")
    _one_prompt_per_read(residuals.pack)
    return residuals.logits.argmax(-1)


def _one_prompt_per_read(packed: Pack) -> None:
    if len(packed.reads) != len(packed.units):
        raise InputError("adaptation", "two of the adaptation prompts are the same")


def layer_scores(path: LayerPath, layer: int, settings: Attribution) -> Integral:
    """The scores of one layer's neurons by the quadrature that `settings` names."""

    def value(alphas: Sequence[float]) -> list[float]:
        return path.values(layer, alphas)

    def gradient(alphas: Sequence[float]) -> Tensor:
        return path.gradients(layer, alphas)

    if settings.quadrature == "riemann_right":
        return riemann_right(value, gradient, settings.steps)
    return adaptive(value, gradient, tolerance=settings.tolerance, max_nodes=settings.max_nodes)
