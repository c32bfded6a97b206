"""The MLP of a decoder layer, y = W_down (act(W_gate x) * W_up x) or y = W_down act(W_first x), found by its structure.

With a gate, two layouts are known: the three projections in `gate_proj`, `up_proj` and `down_proj` (Llama, Qwen,
Mistral, Gemma, OLMo), and gate and up in the rows of one `gate_up_proj`, gate first (Phi-3). Without a gate, it is two
linear layers of any name with one activation beside them, in a module of their own (GPT-2, GPT-NeoX, StarCoder2) or in
the decoder layer itself (OPT). A module with one of these layouts is compared with the formula before it is used. One
that computes anything else is refused.

The projections of an MLP without a gate are named by their role, so that settings and recipes are the same for all
models. `gate_proj` is W_first, whose output goes through the activation, as that of a gate does. `down_proj` is
W_down. There is no `up_proj`; the formula is that of a gated MLP with W_up x = 1.

In some families, a row has a bias. The bias belongs to the row: both are scaled and both are zeroed, so that the output
of the row is 0 and, with act(0) = 0, the neuron is silent.

A mixture of experts has the same contract: `tasks.models.experts`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.models.edits import edited, taken_off, without_rows
from tasks.models.experts import Experts, experts_of
from tasks.models.products import linear
from tasks.models.projections import Projection
from tasks.models.structure import LINEAR, activations_of, weight_of
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
        module: the module with the linear layers: the MLP, or the decoder layer.
        activation: act, with act(0) = 0.
        places: the places of its projections.
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

    @property
    def entrance(self) -> Any:
        """The module that x enters."""
        return self.linear("gate_proj")

    @property
    def exit(self) -> Any:
        """The module that gives y."""
        return self.down

    def width(self, projection: Projection) -> int:
        """The number of rows of a projection: d_ff, or d_model for down_proj."""
        return self.d_model if projection == "down_proj" else self.d_ff

    def check(self, projection: Projection) -> None:
        """Raises `InputError` if rows of this projection cannot be edited."""
        self.place(projection)

    def linear(self, projection: Projection) -> Any:
        """The linear layer with the rows of a projection. x enters that of gate_proj first."""
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

    def scaled(self, x: Tensor, scale: Tensor, projection: Projection, added: Tensor | None) -> Tensor:
        """y [C, T, d_model] of x [T, d_model], with row j of a projection times scale[:, j].

        Differentiable in `scale`, [C, width], and in `added`, [C, T, width], which is added to the output of the rows.
        """
        with torch.no_grad():
            gate, up = self.gate_and_up(x)
        y: Tensor
        if projection == "gate_proj":
            y = self.down(self.activation(edited(gate, scale, added)) * up)
        elif projection == "up_proj":
            y = self.down(self.activation(gate) * edited(up, scale, added))
        else:
            y = edited(self.down(self.activation(gate) * up), scale, added)
        return y

    def without(self, x: Tensor, sets: Sequence[np.ndarray], projection: Projection) -> Sequence[Tensor]:
        """y [T, d_model] of x [T, d_model] without each set of rows of a projection.

        If a row of gate_proj or up_proj is silent, its column of down_proj has no input: its contribution is subtracted
        from y.
        """
        gate, up = self.gate_and_up(x)
        hidden = self.activation(gate) * up
        full = self.down(hidden)
        if projection == "down_proj":
            return without_rows(full, sets)

        def share(y: Tensor, neurons: np.ndarray) -> Tensor:
            chosen = torch.as_tensor(neurons, device=y.device)
            return y - linear(hidden[..., chosen], weight_of(self.down)[:, chosen])

        return taken_off(full, sets, share)

    def edit_rows(self, projection: Projection, scale: Tensor, added: Tensor | None) -> Any:
        """Edits the rows of a projection in all later calls, as in `scaled`; returns the handle that ends this.

        Each call has len(scale) runs. Gradients flow through the edit. Without a gate, the output of up_proj is 1.
        """
        runs = len(scale)

        def on_hidden(_: Any, inputs: tuple[Tensor, ...]) -> Tensor:
            hidden = inputs[0].reshape(runs, -1, self.d_ff)
            return (hidden * edited(hidden.new_ones(()), scale, added)).reshape(inputs[0].shape)

        if projection == "up_proj" and projection not in self.places:
            return self.down.register_forward_pre_hook(on_hidden)
        _, part, parts = self.place(projection)

        def hook(_: Any, __: Any, y: Tensor) -> Tensor:
            # In OPT the runs lie one after the other, [runs * T, rows].
            pieces = list(y.reshape(runs, -1, y.shape[-1]).chunk(parts, dim=-1))
            pieces[part] = edited(pieces[part], scale, added)
            return torch.cat(pieces, -1).reshape(y.shape)

        return self.linear(projection).register_forward_hook(hook)

    def watch(self, projection: Projection, keep: Callable[[Tensor], None]) -> Any:
        """Shows `keep` the neurons' values [tokens, width] in all later calls; returns the handle that ends this.

        The value of a row of gate_proj or up_proj is h_j, the factor of its column of down_proj. The value of a row of
        down_proj is its output.
        """
        return self.down.register_forward_hook(
            lambda _, inputs, y: keep((y if projection == "down_proj" else inputs[0]).flatten(0, -2))
        )

    def directions(self, neurons: Sequence[int]) -> Tensor:
        """The direction that each neuron writes, [neurons, d_model]: its column of down_proj."""
        return weight_of(self.down).T[list(neurons)]

    def row_tensors(self, projection: Projection, neurons: np.ndarray) -> list[tuple[Tensor, Any]]:
        """The rows of these neurons in the weights and, if they have any, their biases.

        Returns:
            Tensors that can be written to, each with the index of the rows in it.
        """
        _, part, parts = self.place(projection)
        layer = self.linear(projection)
        tensors = [tensor.chunk(parts)[part] for tensor in (weight_of(layer), layer.bias) if tensor is not None]
        return [(tensor, torch.as_tensor(neurons, device=tensor.device)) for tensor in tensors]

    def place(self, projection: Projection) -> tuple[str, int, int]:
        """Where the rows of a projection are.

        Raises:
            InputError: there is no such projection.
        """
        if projection not in self.places:
            raise InputError("projection", f"the model has no {projection}: its MLPs have no gate; use gate_proj")
        return self.places[projection]


def mlp_of(layer: Any, kind: str) -> "Mlp | Experts":
    """The MLP of a decoder layer of a model of class `kind`. On the meta device it is not compared with the formula.

    Raises:
        InputError: the layer has no MLP or more than one, or a zeroed row does not silence its neuron.
    """
    if experts := experts_of(layer, kind):
        return experts
    children = list(layer.children())
    mlps = [(child, places) for child in children if (places := _gated(child))]
    mlps = mlps or [(module, places) for module in (layer, *children) if (places := _without_gate(module))]
    if len(mlps) != 1:
        raise InputError("model", f"{kind} has {len(mlps) or 'no'} MLPs of a known form: {LOOKED_FOR} in its layers")
    module, places = mlps[0]
    activations = activations_of(module)
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
    if len(linear) != 2 or len(activations_of(module)) != 1:
        return None
    first, down = (weight_of(getattr(module, name)).shape for name in linear)
    return {"gate_proj": (linear[0], 0, 1), "down_proj": (linear[1], 0, 1)} if first == down[::-1] else None


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
