"""The MLP of a decoder layer, y = W_down (act(W_gate x) * W_up x) or y = W_down act(W_first x), found by its structure.

With a gate, two layouts are known: the three projections in `gate_proj`, `up_proj` and `down_proj` (Llama, Qwen,
Mistral, Gemma, OLMo), and gate and up in the rows of one `gate_up_proj`, gate first (Phi-3). Without a gate, it is two
linear layers of any name with one activation beside them, in a module of their own (GPT-2, GPT-NeoX, StarCoder2) or in
the decoder layer itself (OPT). Whatever has one of these layouts is compared with the formula before it is used, so
that a module that does more than that, or in another order, is refused.

The projections of an MLP without a gate are called by what they do, so that settings and recipes are the same for all
models. `gate_proj` is the one whose output goes through the activation, as that of a gate does: W_first. `down_proj` is
W_down. There is no `up_proj`; the formula is that of a gated MLP with W_up x = 1.

A row has a bias in some families. It belongs to the row: both are scaled and both are zeroed, so that what the row
gives is 0 and, with act(0) = 0, the neuron is silent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.projections import Projection
from tasks.models.structure import LINEAR, weight_of
from tasks.runtime.errors import InputError

# Where the rows of a projection lie: (linear layer, which part of its rows, how many equal parts it has).
Places = Mapping[Projection, tuple[str, int, int]]
GATED: tuple[Places, ...] = (
    {"gate_proj": ("gate_proj", 0, 1), "up_proj": ("up_proj", 0, 1), "down_proj": ("down_proj", 0, 1)},
    {"gate_proj": ("gate_up_proj", 0, 2), "up_proj": ("gate_up_proj", 1, 2), "down_proj": ("down_proj", 0, 1)},
)
LOOKED_FOR = (
    "looked for linear layers gate_proj, up_proj and down_proj, or gate_up_proj and down_proj, or two linear layers of "
    "any name with an activation between them"
)


@dataclass(frozen=True)
class Mlp:
    """An MLP of d_ff neurons.

    Attributes:
        module: what has the linear layers: the MLP, or the decoder layer.
        activation: act, with act(0) = 0.
        places: of the projections that it has.
    """

    module: Any
    activation: Callable[[Tensor], Tensor]
    places: Places

    @property
    def down(self) -> Any:
        """The linear layer with W_down."""
        return self.linear("down_proj")

    @property
    def d_ff(self) -> int:
        return weight_of(self.down).shape[1]

    @property
    def d_model(self) -> int:
        return weight_of(self.down).shape[0]

    def linear(self, projection: Projection) -> Any:
        """The linear layer that has the rows of a projection; that of gate_proj is what x enters first."""
        return getattr(self.module, self.place(projection)[0])

    def gate_and_up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """W_gate x and W_up x, each [..., d_ff], of x [..., d_model]; without a gate W_first x and 1."""
        gate = self.linear("gate_proj")(x)
        if "up_proj" not in self.places:
            return gate, gate.new_ones(())
        if self.place("gate_proj")[0] == self.place("up_proj")[0]:
            gate, up = gate.chunk(2, dim=-1)
            return gate, up
        return gate, self.linear("up_proj")(x)

    def edit_rows(self, projection: Projection, edit: Callable[[Tensor], Tensor], runs: int) -> Any:
        """Puts what the rows of a projection give through `edit` in all later calls; returns the handle that ends this.

        Gradients flow through `edit`, [runs, T, rows] -> [runs, T, rows]. What up_proj gives without a gate is 1.
        """

        def on_hidden(_: Any, inputs: tuple[Tensor, ...]) -> Tensor:
            hidden = inputs[0].reshape(runs, -1, self.d_ff)
            return (hidden * edit(hidden.new_ones(()))).reshape(inputs[0].shape)

        if projection == "up_proj" and projection not in self.places:
            return self.down.register_forward_pre_hook(on_hidden)
        _, part, parts = self.place(projection)

        def hook(_: Any, __: Any, y: Tensor) -> Tensor:
            # In OPT the runs lie one after the other, [runs * T, rows].
            pieces = list(y.reshape(runs, -1, y.shape[-1]).chunk(parts, dim=-1))
            pieces[part] = edit(pieces[part])
            return torch.cat(pieces, -1).reshape(y.shape)

        return self.linear(projection).register_forward_hook(hook)

    def row_tensors(self, projection: Projection) -> list[Tensor]:
        """The rows of a projection in the weights, [rows, in], and their biases, [rows], if it has any.

        They are views that can be written to.
        """
        _, part, parts = self.place(projection)
        linear = self.linear(projection)
        return [tensor.chunk(parts)[part] for tensor in (weight_of(linear), linear.bias) if tensor is not None]

    def place(self, projection: Projection) -> tuple[str, int, int]:
        """Where the rows of a projection are.

        Raises:
            InputError: there is no such projection.
        """
        if projection not in self.places:
            raise InputError("projection", f"the model has no {projection}: its MLPs have no gate; use gate_proj")
        return self.places[projection]


def mlp_of(layer: Any, kind: str) -> Mlp:
    """The MLP of a decoder layer of a model of class `kind`. One without memory for its weights is not computed with.

    Raises:
        InputError: the layer has none, or more than one, or one whose neurons a zeroed row does not silence.
    """
    children = list(layer.children())
    found = [(child, places) for child in children if (places := _gated(child))]
    found = found or [(module, places) for module in (layer, *children) if (places := _without_gate(module))]
    if len(found) != 1:
        if any(hasattr(child, "experts") for child in children):
            raise InputError(
                "model",
                f"{kind} is a mixture of experts, which is not supported: a neuron there works only for the tokens "
                "that its expert is given, so its score is not that of a row of one MLP; "
                f"{LOOKED_FOR} in its layers",
            )
        raise InputError("model", f"{kind} has {len(found) or 'no'} MLPs of a known form: {LOOKED_FOR} in its layers")
    module, places = found[0]
    activations = _activations(module)
    if len(activations) != 1 or float(activations[0](torch.zeros(1))) != 0:
        raise InputError("model", f"{kind}: act(0) of its MLP must be 0, or a zeroed row of gate_proj is not silent")
    mlp = Mlp(module, activations[0], places)
    if module is not layer and not mlp.down.weight.is_meta:
        _check(mlp, kind)
    return mlp


def _gated(module: nn.Module) -> Places | None:
    linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
    return next((places for places in GATED if linear >= {name for name, _, _ in places.values()}), None)


def _without_gate(module: nn.Module) -> Places | None:
    """The places in a module whose only linear layers are one to d_ff and one back, and which has one activation."""
    linear = [name for name, child in module.named_children() if isinstance(child, LINEAR)]
    if len(linear) != 2 or len(_activations(module)) != 1:
        return None
    first, down = (weight_of(getattr(module, name)).shape for name in linear)
    return {"gate_proj": (linear[0], 0, 1), "down_proj": (linear[1], 0, 1)} if first == down[::-1] else None


def _activations(module: nn.Module) -> list[Any]:
    """The children of a module that are functions without parameters."""
    return [
        child
        for child in module.children()
        if not isinstance(child, nn.Dropout | nn.Identity) and not [*child.children(), *child.parameters()]
    ]


@torch.no_grad()
def _check(mlp: Mlp, kind: str) -> None:
    weight = mlp.down.weight
    x = torch.linspace(-1, 1, mlp.d_model, device=weight.device, dtype=weight.dtype)[None, None]
    expected = mlp.module(x)
    if not expected.isfinite().all():
        raise InputError("model", f"{kind}: its MLP overflows: its weights are too large for float32")
    gate, up = mlp.gate_and_up(x)
    gap = float((mlp.down(mlp.activation(gate) * up) - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
    if not gap < 1e-3:
        formula = "act(gate) * up" if "up_proj" in mlp.places else "act(first)"
        raise InputError(
            "model",
            f"{kind}: its MLP does not compute down_proj({formula}) (relative difference {gap:.1e}); this family "
            "is not supported",
        )
