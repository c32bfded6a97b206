"""Integrated gradients of the rows of a projection (2507.09185 Eq. 4 and 5), and what is made of the same gradients.

A row's output is linear in the row, g_j = w_j . x, and what enters the layer does not depend on it. So the path
alpha * w_j is the path alpha * g_j at all positions at once, and with a factor s_j on g_j

    IG_j = w_j . int_0^1 dF/dw_j(alpha w) da = int_0^1 dF/ds_j(alpha 1) da.

No weight gradient and no copy of a weight is needed. F is the mean over the adaptation prompts of a target
(`tasks.method.targets`), which is Eq. 5, since gradients are linear in F.

The paper does not say which neurons are scaled together. `layer`: those of one layer, whose F(0) is the model without
that layer's MLP. `all_layers`: those of all layers, with every later row's output computed anew from what the earlier
ones leave; the scores of all layers together then add up to F(1) - F(0). Rows of up_proj and down_proj are ours as far
as the path goes; the paper compares projections without a formula. In a model with a norm behind the MLP (Gemma) they
say little: y and alpha * y are the same to it, so that all of F(1) - F(0) lies where alpha reaches the norm's epsilon,
and the gap does not close.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.method.options import Attribution
from tasks.method.quadrature import Integral, adaptive, riemann_right
from tasks.method.targets import target_of
from tasks.models.memory import backward_tokens
from tasks.models.stack import DecoderStack, Projection, Residuals


class LayerPath:
    """F and its gradient along the path of one layer's rows, or of all layers' rows together.

    Args:
        sequences: token ids of each prompt.
        firsts: the first token of each option of each prompt, for targets on options.
        apart: a pack for each prompt, so that no position belongs to several (for `rectified`).
        max_tokens: how many tokens (nodes x tokens of a pack) one backward pass may hold; default: by free memory.
    """

    def __init__(
        self,
        stack: DecoderStack,
        sequences: Sequence[Sequence[int]],
        firsts: Sequence[Sequence[int]] | None = None,
        *,
        target: str = "max_logit",
        projection: Projection = "gate_proj",
        apart: bool = False,
        max_tokens: int | None = None,
    ):
        self.stack = stack
        self.projection = projection
        self.prompts = len(sequences)
        self._max_tokens = max_tokens or backward_tokens(stack.model)
        units = [[(sequence, [len(sequence) - 1])] for sequence in sequences]
        packs = stack.pack(units, max_tokens=1) if apart else stack.pack(units)
        residuals = [stack.clean(packed) for packed in packs]
        self.passes = [(part, target_of(target, part, firsts)) for part in residuals]

    def evaluate(self, layer: int | None, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """F and dF/ds at s = alpha * 1 for each alpha, float64 on the CPU.

        Args:
            layer: None for the rows of all layers.

        Returns:
            [alphas], and [alphas, width] or [alphas, layers, width].
        """
        values = torch.zeros(len(alphas), dtype=torch.float64)
        gradients = torch.zeros(len(alphas), *self._shape(layer), dtype=torch.float64)
        for residuals, target in self.passes:
            for part in self._chunks(residuals, len(alphas)):
                scale = self._scale(layer, alphas[part]).requires_grad_(True)
                totals = target(self._logits(residuals, layer, scale, None)).sum(1)
                values[part] += totals.detach().double().cpu()
                gradients[part] += torch.autograd.grad(totals.sum(), scale)[0].double().cpu()
        return values / self.prompts, gradients / self.prompts

    def at_one(self) -> tuple[Tensor, Tensor]:
        """F and dF/ds of every layer at s = 1, the unedited model: float64 scalar and [layers, width].

        One backward pass serves all layers.
        """
        values, gradients = self.evaluate(None, [1.0])
        return values[0], gradients[0]

    def rectified(self, layer: int | None, steps: int) -> Tensor:
        """Mean over k = 1..steps of the sum over positions of ReLU(dF/dg_j), at g = k / steps times its full value.

        g_j is what row j gives at a position (for gate_proj the gate's pre-activation). The ReLU is taken for each
        prompt, step and position; then the mean over prompts. There is no factor g_j, so nothing adds up to F(1) -
        F(0). It is a second reading of what integrated gradients may mean in 2507.09185, not a formula in it; a
        division by the layer's maximum, which would change no ranking within a layer, is left out.

        Returns:
            float64 [width] or, with `layer` None, [layers, width].
        """
        if any(len(residuals.pack.units) > 1 for residuals, _ in self.passes):
            raise ValueError("prompts that share positions have no gradient of their own there: apart=True")
        alphas = [k / steps for k in range(1, steps + 1)]
        layers = range(len(self.stack)) if layer is None else [layer]
        width = self.stack.width(self.projection)
        sums = torch.zeros(len(layers), width, dtype=torch.float64)
        for residuals, target in self.passes:
            for part in self._chunks(residuals, steps):
                scale = self._scale(layer, alphas[part])
                added = [
                    scale.new_zeros(len(scale), len(residuals.entering[at]), width).requires_grad_(True)
                    for at in layers
                ]
                total = target(self._logits(residuals, layer, scale, added)).sum()
                for row, gradient in zip(sums, torch.autograd.grad(total, added), strict=True):
                    row += gradient.relu().double().sum((0, 1)).cpu()
        return (sums if layer is None else sums[0]) / (steps * self.prompts)

    def _logits(self, residuals: Residuals, layer: int | None, scale: Tensor, added: list[Tensor] | None) -> Tensor:
        if layer is None:
            return self.stack.scaled_everywhere(residuals, scale, self.projection, added)
        return self.stack.scaled(residuals, layer, scale, self.projection, added[0] if added else None)

    def _shape(self, layer: int | None) -> tuple[int, ...]:
        width = self.stack.width(self.projection)
        return (len(self.stack), width) if layer is None else (width,)

    def _scale(self, layer: int | None, alphas: Sequence[float]) -> Tensor:
        ones = torch.ones(len(alphas), *self._shape(layer), dtype=self.stack.dtype, device=self.stack.device)
        return ones.mul_(ones.new_tensor(alphas).reshape(-1, *[1] * (ones.dim() - 1)))

    def _chunks(self, residuals: Residuals, runs: int) -> list[slice]:
        size = max(1, self._max_tokens // len(residuals.pack.tokens))
        return [slice(start, start + size) for start in range(0, runs, size)]


def layer_scores(path: LayerPath, layer: int | None, one: tuple[Tensor, Tensor], settings: Attribution) -> Integral:
    """The scores of one layer's neurons by the quadrature that `settings` names; `one` is `path.at_one()`.

    `gradient_x_activation` is the right Riemann rule of one step: its node is the full model. With `layer` None, the
    scores of all layers' neurons, one layer's behind the other's.
    """

    def evaluate(alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        values, gradients = path.evaluate(layer, alphas)
        return values, gradients.flatten(1)

    at_one = one[0], one[1].flatten() if layer is None else one[1][layer]
    if settings.method == "gradient_x_activation":
        return riemann_right(evaluate, at_one, 1)
    if settings.quadrature == "riemann_right":
        return riemann_right(evaluate, at_one, settings.steps)
    return adaptive(
        evaluate,
        at_one,
        tolerance=settings.tolerance,
        stability=settings.stability,
        max_nodes=settings.max_nodes,
    )
