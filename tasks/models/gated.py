"""The gated MLP of a decoder layer, y = W_down (act(W_gate x) * W_up x), found by its structure.

Two layouts are known: the three projections in `gate_proj`, `up_proj` and `down_proj` (Llama, Qwen, Mistral, Gemma,
OLMo), and gate and up in the rows of one `gate_up_proj`, gate first (Phi-3). Whatever has one of them is compared with
the formula before it is used, so that a module that does more than that, or in another order, is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.projections import PROJECTIONS, Projection
from tasks.runtime.errors import InputError

# Where the rows of a projection may lie: (linear layer, which part of its rows, how many equal parts it has).
PLACES: dict[Projection, tuple[tuple[str, int, int], ...]] = {
    "gate_proj": (("gate_proj", 0, 1), ("gate_up_proj", 0, 2)),
    "up_proj": (("up_proj", 0, 1), ("gate_up_proj", 1, 2)),
    "down_proj": (("down_proj", 0, 1),),
}
LOOKED_FOR = "looked for linear layers gate_proj, up_proj and down_proj, or gate_up_proj and down_proj"


@dataclass(frozen=True)
class GatedMlp:
    """A gated MLP of d_ff neurons.

    Attributes:
        module: what the decoder layer calls.
        activation: act, with act(0) = 0.
        down: W_down, without bias.
    """

    module: Any
    activation: Callable[[Tensor], Tensor]
    down: nn.Linear

    @property
    def d_ff(self) -> int:
        return self.down.in_features

    def gate_and_up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """W_gate x and W_up x, each [..., d_ff], of x [..., d_model]."""
        if hasattr(self.module, "gate_up_proj"):
            gate, up = self.module.gate_up_proj(x).chunk(2, dim=-1)
            return gate, up
        return self.module.gate_proj(x), self.module.up_proj(x)

    def edit_rows(self, projection: Projection, edit: Callable[[Tensor], Tensor]) -> Any:
        """Puts what the rows of a projection give through `edit` in all later calls; returns the handle that ends this.

        `edit` may turn one run [1, T, rows] into C, and gradients flow through it.
        """
        name, part, parts = self._place(projection)

        def hook(_: Any, __: Any, y: Tensor) -> Tensor:
            pieces = list(y.chunk(parts, dim=-1))
            edited = edit(pieces[part])
            return torch.cat([edited if i == part else piece.expand_as(edited) for i, piece in enumerate(pieces)], -1)

        return getattr(self.module, name).register_forward_hook(hook)

    def weight_rows(self, projection: Projection) -> Tensor:
        """The rows of a projection in the weights, [rows, in]: a view that can be written to."""
        name, part, parts = self._place(projection)
        rows: Tensor = getattr(self.module, name).weight.chunk(parts)[part]
        return rows

    def _place(self, projection: Projection) -> tuple[str, int, int]:
        return next(place for place in PLACES[projection] if hasattr(self.module, place[0]))


def gated_mlp(layer: Any, kind: str) -> GatedMlp:
    """The gated MLP of a decoder layer of a model of class `kind`.

    Raises:
        InputError: the layer has none, or more than one, or one whose neurons a zeroed row does not silence.
    """
    children = list(layer.children())
    found = [child for child in children if _is_gated(child)]
    if len(found) != 1:
        if any(hasattr(child, "experts") for child in children):
            raise InputError(
                "model",
                f"{kind} is a mixture of experts, which is not supported: a neuron there works only for the tokens "
                "that its expert is given, so its score is not that of a row of one MLP; "
                f"{LOOKED_FOR} in model.layers",
            )
        raise InputError("model", f"{kind} has {len(found) or 'no'} gated MLP: {LOOKED_FOR} in model.layers")
    module = found[0]
    for name in ("gate_up_proj", *PROJECTIONS):
        if getattr(getattr(module, name, None), "bias", None) is not None:
            raise InputError("model", f"{kind}: {name} has a bias, which a zeroed row of weights leaves active")
    activation = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
    if activation is None or float(activation(torch.zeros(1))) != 0:
        raise InputError("model", f"{kind}: act_fn(0) must be 0, or a zeroed row of gate_proj is not silent")
    mlp = GatedMlp(module, activation, module.down_proj)
    _check(mlp, kind)
    return mlp


def _is_gated(module: nn.Module) -> bool:
    linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
    return linear >= set(PROJECTIONS) or linear >= {"gate_up_proj", "down_proj"}


@torch.no_grad()
def _check(mlp: GatedMlp, kind: str) -> None:
    weight = mlp.down.weight
    x = torch.linspace(-1, 1, weight.shape[0], device=weight.device, dtype=weight.dtype)[None, None]
    expected = mlp.module(x)
    if not expected.isfinite().all():
        raise InputError("model", f"{kind}: its MLP overflows: its weights are too large for float32")
    gate, up = mlp.gate_and_up(x)
    gap = float((mlp.down(mlp.activation(gate) * up) - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
    if not gap < 1e-3:
        raise InputError(
            "model",
            f"{kind}: its MLP does not compute down_proj(act(gate) * up) (relative difference {gap:.1e}); this family "
            "is not supported",
        )
