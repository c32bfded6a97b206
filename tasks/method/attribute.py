"""Scores of all neurons by the method that the settings name: one contract for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from tasks.benchmarks.encoding import encode, encode_prompt
from tasks.benchmarks.table import chat_column
from tasks.method.ablation import activation, single
from tasks.method.integrated_gradients import LayerPath, all_scores, first_nodes, layer_scores
from tasks.method.options import Attribution
from tasks.method.quadrature import Integral
from tasks.method.scores import Scores
from tasks.method.shapley import shapley
from tasks.method.targets import ON_OPTIONS, TARGETS
from tasks.models.memory import room
from tasks.models.routing import unreached
from tasks.models.stack import DecoderStack, Projection
from tasks.runtime.errors import InputError

Part = tuple[int, ...]  # the layers that share a path


@dataclass(frozen=True)
class Attributed:
    """The scores of the neurons of some layers, means over the prompts.

    Attributes:
        scores: float64 [layers of the part, width], signed, whatever `ranking` is.
        difference: F(1) - F(0) along the path; NaN where the scores do not add up to anything (`relu_gradient`,
            `saliency`, `activation`, path `single`), and so for `gap`, `error` and `stability`.
        gap: sum of the scores minus `difference`.
        error: bound on |gap| in which nothing cancels (`tasks.method.quadrature.Integral`).
        stability: how settled the ranking is, a rank correlation (ibidem); NaN for a fixed rule.
        nodes: gradient evaluations spent, not counting the one at the full model, which all layers share.
    """

    scores: Tensor
    difference: float = nan
    gap: float = nan
    error: float = nan
    stability: float = nan
    nodes: int = 0


class Attributor:
    """Scores of a model's neurons on the adaptation prompts, in parts that can be computed anywhere and in any order.

    A neuron is a row of `settings.projection`. By `settings.method`:

    * integrated_gradients (2507.09185 Eq. 4 and 5): `integrated_gradients.layer_scores`, for path `layer` or
      `all_layers` (the paper leaves open which); path `single`: `ablation.single`, ours.
    * gradient_x_activation: the same with the gradient at the full model instead of its integral.
    * relu_gradient: `LayerPath.rectified`, another reading of the paper's method.
    * deeplift: DeepLIFT's rescale rule (1704.02685) inside the MLP, integrated gradients above it. The reference of
      g_j is 0; the rule carries a contribution of h_j = act(g_j) u_j to g_j whole, since g_j alone makes it. So
      the scores are those of a common factor on all h_j, which is the path of the rows of up_proj, and add up to F(1) -
      F(0). The rule has no canonical form for attention and norms, which is why it ends at the MLP.
    * shapley: `shapley.shapley`, Owen's sampling to first order.
    * saliency: `LayerPath.saliency`, the size of the gradient.
    * activation: `ablation.activation`, a baseline that looks at no answer.

    In a mixture of experts, the neurons of a layer are those of all its experts (`tasks.models.experts`). On the path
    of one layer its tokens stay with their experts, and those of the layers above may go to others: F then jumps, and
    the gap is the sum of the jumps. Neurons of experts to which no token is routed have the score 0.

    Args:
        sequences: token ids of each prompt, up to where the answer begins.
        firsts: for targets on options, the first token of each option of each prompt.

    Raises:
        InputError: the model has no such projection, or experts and the path is all_layers.
    """

    def __init__(
        self,
        stack: DecoderStack,
        sequences: Sequence[Sequence[int]],
        settings: Attribution,
        firsts: Sequence[Sequence[int]] | None = None,
    ):
        stack.mlps[0].check(settings.projection)  # refuses up_proj where there is no gate
        if stack.each is not None and settings.path == "all_layers":
            raise InputError(
                "attribution.path",
                "all_layers is not supported for a mixture of experts: along the path the tokens of every layer change "
                "their experts; use layer",
            )
        self._stack = stack
        self._sequences = sequences
        self._settings = settings
        self._firsts = firsts

    @property
    def parts(self) -> list[Part]:
        """The parts of the work, which are all layers in their order: one by one, or those of a common path."""
        layers = range(len(self._stack))
        return [tuple(layers)] if self._settings.path == "all_layers" else [(layer,) for layer in layers]

    @property
    def products(self) -> str:
        """How the model computes."""
        return self._stack.products

    @property
    def experts(self) -> dict[str, Any]:
        """For the header of the scores: how many neurons `each` expert has, and which ones are `unreached`, by layer.

        Empty if the model has no experts.
        """
        return {"experts": {"each": self._stack.each, "unreached": self._unreached}} if self._stack.each else {}

    def together(self, parts: Sequence[Part]) -> list[list[Part]]:
        """The parts in groups that are computed in common rounds: one by one where weights are at hand.

        Otherwise a group has the layers whose first nodes fit into one sweep. A group that is finished is in the
        journal, and groups can go to different workers.
        """
        settings = self._settings
        if self._stack.at_hand or settings.path != "layer" or not _is_integral(settings):
            return [[part] for part in parts]
        groups: list[list[Part]] = []
        used = 0.0  # bytes of the last group
        for part in parts:
            needed = self.path.stored_bytes(part[0], first_nodes(settings))
            if groups and used + needed <= self.path.together:
                groups[-1].append(part)
                used += needed
            else:
                groups.append([part])
                used = needed
        return groups

    def compute_together(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """`compute` of several parts."""
        if len(parts) == 1 or not _is_integral(self._settings):
            return [self.compute(part) for part in parts]
        integrals = all_scores(self.path, [part[0] for part in parts], self._one, self._settings)
        return [_as_json(_attributed(integrals[part[0]], 1)) for part in parts]

    def attribute(self, part: Part) -> Attributed:
        """The scores of the layers of one part."""
        settings = self._settings
        layer = part[0] if len(part) == 1 and settings.path != "all_layers" else None
        if settings.method == "activation":
            return Attributed(self._activation[list(part)])
        if settings.method == "relu_gradient":
            scores = self.path.rectified(layer, settings.steps)
            return Attributed(scores.reshape(len(part), -1), nodes=settings.steps)
        if settings.method == "saliency":
            return Attributed(self._saliency[list(part)])
        if settings.method == "shapley":
            return _attributed(shapley(self.path, part[0], settings.steps), 1)
        if settings.path == "single":
            scores = single(self.path, part[0])
            if self._stack.each is not None:  # here 0 is the difference of two sums, which are rounded
                scores.reshape(-1, self._stack.each)[self._unreached[part[0]]] = 0
            return Attributed(scores[None])
        return _attributed(layer_scores(self.path, layer, self._one, settings), len(part))

    def compute(self, part: Part) -> dict[str, Any]:
        """`attribute` as a JSON value, for `tasks.runtime.work`."""
        return _as_json(self.attribute(part))

    # Made when they are first needed: a run whose parts are all in the journal does not need them.

    @cached_property
    def path(self) -> LayerPath:
        """The path of the settings on the prompts."""
        settings = self._settings
        return LayerPath(
            self._stack,
            self._sequences,
            self._firsts,
            target=settings.target,
            projection=_factor_on(settings),
            apart=settings.method in ("relu_gradient", "saliency"),
            together=0 if self._stack.at_hand else room(self._stack.model).bytes / 2,
        )

    @cached_property
    def _one(self) -> tuple[Tensor, Tensor]:
        return self.path.at_one()

    @cached_property
    def _unreached(self) -> list[list[int]]:
        """The experts of each layer to which no token is routed; [] for a model without experts."""
        stack = self._stack
        if stack.each is None:
            return []
        if self._settings.method == "activation":
            return unreached(stack, lambda: activation(stack, self._sequences, self._settings.projection))
        units = [[(sequence, [len(sequence) - 1])] for sequence in self._sequences]
        return unreached(stack, lambda: [stack.clean(packed) for packed in stack.pack(units)])

    @cached_property
    def _saliency(self) -> Tensor:
        return self.path.saliency()

    @cached_property
    def _activation(self) -> Tensor:
        return activation(self._stack, self._sequences, self._settings.projection)


def _factor_on(settings: Attribution) -> Projection:
    """The projection whose outputs the path scales: for deeplift and shapley h, which is linear in those of up_proj."""
    on_h = settings.method in ("deeplift", "shapley") and settings.projection != "down_proj"
    return "up_proj" if on_h else settings.projection


def _is_integral(settings: Attribution) -> bool:
    """Whether the scores come from gradients along the path of each part."""
    methods = ("integrated_gradients", "gradient_x_activation", "deeplift")
    return settings.method in methods and settings.path != "single"


def _attributed(result: Integral, layers: int) -> Attributed:
    scores = result.scores.reshape(layers, -1)
    return Attributed(scores, result.difference, result.gap, result.error, result.stability, result.nodes)


def _as_json(result: Attributed) -> dict[str, Any]:
    return vars(result) | {"scores": result.scores.tolist()}


def describe(settings: Attribution) -> dict[str, Any]:
    """The settings that the scores depend on, and F in words, for the header of the scores."""
    effective = settings.effective()
    return effective | {"definition": TARGETS[settings.target]} if "target" in effective else effective


def assemble(values: Sequence[dict[str, Any]], header: dict[str, Any]) -> Scores:
    """The scores of all layers from the values of all parts, in their order.

    Args:
        header: becomes `Scores.header`.
    """
    names = ("difference", "gap", "error", "stability")
    arrays = {name: np.array([value[name] for value in values], dtype=np.float32) for name in names}
    scores = np.array([layer for value in values for layer in value["scores"]], dtype=np.float32)
    nodes = np.array([value["nodes"] for value in values], dtype=np.int32)
    return Scores(values=scores, nodes=nodes, header=header, **arrays)


def attributor_on(stack: DecoderStack, tokenizer: Any, table: pd.DataFrame, settings: Attribution) -> Attributor:
    """The attribution on the rows of a table with `prompt`, `options` and, with a chat template, `chat`."""
    rows = list(zip(table["prompt"], table["options"], chat_column(table), strict=True))
    if settings.target not in ON_OPTIONS:
        prompts = [encode_prompt(tokenizer, prompt, stack.context, chat=chat) for prompt, _, chat in rows]
        return Attributor(stack, prompts, settings)
    encoded = [encode(tokenizer, prompt, list(options), stack.context, chat=chat) for prompt, options, chat in rows]
    # The prompt as it is read when options are scored, with the white space it ends in; each option's first token.
    prompts = [row.prompt + row.options[0][: row.given] for row in encoded]
    return Attributor(stack, prompts, settings, [[option[row.given] for option in row.options] for row in encoded])
