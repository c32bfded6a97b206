"""Integrated gradients of the rows of a projection (2507.09185 Eq. 4 and 5), and other scores from the same gradients.

A row's output is linear in the row, g_j = w_j . x, and what enters the layer does not depend on it. So the path
alpha * w_j is the path alpha * g_j at all positions at once, and with a factor s_j on g_j

    IG_j = w_j . int_0^1 dF/dw_j(alpha w) da = int_0^1 dF/ds_j(alpha 1) da.

No weight gradient and no copy of a weight is needed. F is the mean over the adaptation prompts of a target
(`tasks.method.targets`), which is Eq. 5, since gradients are linear in F.

The paper does not say which neurons are scaled together. `layer`: those of one layer, whose F(0) is the model without
that layer's MLP. `all_layers`: those of all layers, with every later row's output computed anew from what the earlier
ones leave; the scores of all layers together then add up to F(1) - F(0). For rows of up_proj and
down_proj, the path is our choice; the paper compares projections without a formula. In a model with a norm after the
MLP (Gemma), their scores say little: the norm gives the same output for y and alpha * y, so that all of F(1) - F(0)
lies where alpha reaches the norm's epsilon, and the gap does not close.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from tasks.method.options import Attribution
from tasks.method.quadrature import FIRST, Integral, Rule, adaptive_rule, integrate_all, riemann_rule
from tasks.method.targets import target_of
from tasks.models.memory import room, with_less
from tasks.models.stack import DecoderStack, Projection, Residuals
from tasks.models.sweep import Path, PathResult, Target, finish
from tasks.models.sweep import gradients as gradients_of


class LayerPath:
    """F and its gradient along the paths of the layers' rows, one layer's or all layers' together.

    Args:
        sequences: token ids of each prompt.
        firsts: the first token of each option of each prompt, for targets on options.
        apart: a pack for each prompt, so that no position belongs to several (for `rectified` and `saliency`).
        max_tokens: how many tokens (nodes x tokens of a pack) one run holds; default: by free memory.
        together: how many bytes of stored layer inputs one sweep may hold, if it has more than one run; with 0, every
            run is a sweep, which is as fast if the weights are at hand (`tasks.models.memory.at_hand`).
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
        together: float = 0,
    ):
        self.stack = stack
        self.projection = projection
        self.prompts = len(sequences)
        self._name = target
        self._firsts = firsts
        self._max_tokens = max_tokens
        self.together = together
        units = [[(sequence, [len(sequence) - 1])] for sequence in sequences]
        packs = stack.pack(units, max_tokens=1) if apart else stack.pack(units)
        self._residuals = [stack.start(packed) for packed in packs]
        self._targets: dict[int, Target] = {}

    @property
    def passes(self) -> list[tuple[Residuals, Target]]:
        """The unedited pass of each pack, finished, and F of its prompts."""
        finish(self.stack, self._residuals)
        return [(residuals, self._target(residuals)) for residuals in self._residuals]

    def _target(self, residuals: Residuals) -> Target:
        if id(residuals) not in self._targets:
            self._targets[id(residuals)] = target_of(self._name, residuals, self._firsts)
        return self._targets[id(residuals)]

    def evaluate(self, layer: int | None, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """F and dF/ds at s = alpha * 1 for each alpha, float64 on the CPU.

        Args:
            layer: None for the rows of all layers.

        Returns:
            [alphas], and [alphas, width] or [alphas, layers, width].
        """
        return self.evaluate_all({layer: alphas})[layer]

    def evaluate_all(self, wanted: Mapping[int | None, Sequence[float]]) -> dict[int | None, tuple[Tensor, Tensor]]:
        """`evaluate` of several layers, in as few sweeps as memory allows."""
        totals = {
            layer: (torch.zeros(len(alphas), dtype=torch.float64), self._zeros(layer, len(alphas)))
            for layer, alphas in wanted.items()
        }
        for (layer, part), result in self._swept(wanted):
            values, gradients = totals[layer]
            values[part] += result.totals.double().cpu()
            if layer is None:
                for at, gradient in result.gradients.items():
                    gradients[part, at] += gradient.double().cpu()
            else:
                gradients[part] += result.gradients[layer].double().cpu()
        return {
            layer: (values / self.prompts, gradients / self.prompts) for layer, (values, gradients) in totals.items()
        }

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
        return self._by_position(layer, [k / steps for k in range(1, steps + 1)], torch.relu) / steps

    def saliency(self) -> Tensor:
        """The sum over positions of |dF/dg_j| at the full model, mean over prompts: float64 [layers, width].

        The gradient's size (Simonyan et al. 2013, arXiv 1312.6034) by what row j gives at each position of a prompt. It
        has no sign, no path and no factor g_j.
        """
        return self._by_position(None, [1.0], torch.abs)

    def _by_position(self, layer: int | None, alphas: Sequence[float], of: Callable[[Tensor], Tensor]) -> Tensor:
        """The sum over positions and alphas of a function of dF/dg_j, mean over prompts."""
        if any(len(residuals.pack.units) > 1 for residuals in self._residuals):
            raise ValueError("prompts that share positions have no gradient of their own there: apart=True")
        sums = self._zeros(layer, 1)[0]
        for _, result in self._swept({layer: alphas}, by_position=True):
            for at, gradient in result.gradients.items():
                row = sums[at] if layer is None else sums
                row += of(gradient).double().sum((0, 1)).cpu()
        return sums / self.prompts

    def _swept(
        self, wanted: Mapping[int | None, Sequence[float]], by_position: bool = False
    ) -> Iterator[tuple[tuple[int | None, slice], PathResult]]:
        """The results of all runs as they are computed, each with its layer and the slice of its alphas."""
        for group in self._groups(wanted, by_position):
            places, paths = zip(*group, strict=True)
            yield from zip(places, with_less(partial(self._sweep, paths)), strict=True)

    def _sweep(self, paths: Sequence[Path], share: float) -> list[PathResult]:
        return gradients_of(self.stack, paths, self._target, room(self.stack.model, share), self.projection)

    def _groups(
        self, wanted: Mapping[int | None, Sequence[float]], by_position: bool
    ) -> Iterator[list[tuple[tuple[int | None, slice], Path]]]:
        """The runs of each sweep: as many as `together` allows by their stored layer inputs, and at least one."""
        there = room(self.stack.model)
        group: list[tuple[tuple[int | None, slice], Path]] = []
        stored = 0
        for layer, alphas in wanted.items():
            for residuals in self._residuals:
                size = max(1, (self._max_tokens or there.backward_tokens) // len(residuals.pack.tokens))
                for part in (slice(start, start + size) for start in range(0, len(alphas), size)):
                    path = Path(residuals, layer, alphas[part], by_position)
                    takes = path.tokens() * (len(self.stack) - path.first) * there.state
                    if group and stored + takes > self.together:
                        yield group
                        group, stored = [], 0
                    group.append(((layer, part), path))
                    stored += takes
        if group:
            yield group

    def stored_bytes(self, layer: int, nodes: int) -> int:
        """Bytes of the layer inputs that a sweep stores for this number of points on the path of a layer."""
        tokens = nodes * sum(len(residuals.pack.tokens) for residuals in self._residuals)
        return tokens * (len(self.stack) - layer) * room(self.stack.model).state

    def _zeros(self, layer: int | None, number: int) -> Tensor:
        width = self.stack.width(self.projection)
        shape = (len(self.stack), width) if layer is None else (width,)
        return torch.zeros(number, *shape, dtype=torch.float64)


def first_nodes(settings: Attribution) -> int:
    """The number of points of a layer's path in the first round of `all_scores`."""
    if settings.method == "gradient_x_activation":
        return 1
    return settings.steps if settings.quadrature == "riemann_right" else len(FIRST)


def layer_scores(path: LayerPath, layer: int | None, one: tuple[Tensor, Tensor], settings: Attribution) -> Integral:
    """The scores of one layer's neurons by the quadrature that `settings` names; `one` is `path.at_one()`.

    With `layer` None, the scores of all layers' neurons, those of one layer after those of the other.
    """
    return all_scores(path, [layer], one, settings)[layer]


def all_scores(
    path: LayerPath, layers: Sequence[int | None], one: tuple[Tensor, Tensor], settings: Attribution
) -> dict[int | None, Integral]:
    """`layer_scores` of several layers, in rounds over those that have not converged.

    `gradient_x_activation` is the right Riemann rule of one step: its node is the full model.
    """

    def rule(layer: int | None) -> Rule:
        at_one = one[0], one[1].flatten() if layer is None else one[1][layer]
        if settings.method == "gradient_x_activation":
            return riemann_rule(at_one, 1)
        if settings.quadrature == "riemann_right":
            return riemann_rule(at_one, settings.steps)
        return adaptive_rule(
            at_one, tolerance=settings.tolerance, stability=settings.stability, max_nodes=settings.max_nodes
        )

    def evaluate(wanted: Mapping[int | None, Sequence[float]]) -> dict[int | None, tuple[Tensor, Tensor]]:
        results = path.evaluate_all(wanted)
        return {layer: (values, gradients.flatten(1)) for layer, (values, gradients) in results.items()}

    return integrate_all({layer: rule(layer) for layer in layers}, evaluate)
