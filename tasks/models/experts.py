"""The experts of a mixture of experts as one MLP of all their neurons; they are recognised by their structure.

A router gives each token k of E experts and a weight r for each. With the experts' projections W^e, a layer computes

    y = sum over the token's experts e of r_e W_down^e (act(W_gate^e x) * W_up^e x).

A neuron is a row of an expert's gate projection. A layer has E * d_expert neurons; row r of expert e is neuron
e * d_expert + r. The routing of a layer depends only on its input, so an edit of its rows does not change it. The edit
changes the input of the layers above, which may route differently. The neurons of an expert are 0 for tokens that are
not routed to it, so they are computed only for the routed (token, expert) pairs.

The layout is that of transformers 5 for Mixtral, Qwen3-MoE and OLMoE: the experts are a module with the parameters
gate_up_proj [E, 2 d_expert, d_model], gate first, and down_proj [E, d_model, d_expert], beside the router in a module
of its own. Models with more than that (shared experts, biases) are refused. The router is not changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tasks.models.calls import Stop
from tasks.models.edits import taken_off
from tasks.models.products import linear
from tasks.models.projections import Projection
from tasks.models.routing import Routed
from tasks.models.structure import activations_of
from tasks.runtime.errors import InputError

NAME = "by_expert"  # in transformers' registry of functions that compute experts
LOOKED_FOR = (
    "looked for a router and experts with the parameters gate_up_proj and down_proj alone, side by side in a module"
)

# An edit of the output of a projection: (rows [pairs, d_expert], the pairs' tokens, the expert's slice of the neurons).
Edit = Callable[[Tensor, Tensor, slice], Tensor]


@dataclass(frozen=True)
class Experts:
    """The contract of `tasks.models.mlp.Mlp` for the experts of a layer.

    Attributes:
        module: the module with the router and the experts.
        inside: the module with the stacked parameters of the experts.
        activation: act, with act(0) = 0.
    """

    module: Any
    inside: Any
    activation: Callable[[Tensor], Tensor]

    @property
    def number(self) -> int:
        """E, the number of experts."""
        return int(self.inside.down_proj.shape[0])

    @property
    def each(self) -> int:
        """d_expert, the number of neurons of each expert."""
        return int(self.inside.down_proj.shape[2])

    @property
    def d_ff(self) -> int:
        return self.number * self.each

    @property
    def d_model(self) -> int:
        return int(self.inside.down_proj.shape[1])

    @property
    def entrance(self) -> Any:
        """The module that x enters."""
        return self.module

    @property
    def exit(self) -> Any:
        """The module that gives y."""
        return self.module

    def width(self, projection: Projection) -> int:
        """The number of rows of a projection."""
        self.part(projection)
        return self.d_ff

    def part(self, projection: Projection) -> int:
        """Which half of the rows of gate_up_proj a projection is.

        Raises:
            InputError: it is down_proj.
        """
        if projection == "down_proj":
            raise InputError(
                "projection", "down_proj of a mixture of experts is not supported; use gate_proj or up_proj"
            )
        return int(projection == "up_proj")

    def check(self, projection: Projection) -> None:
        """Refuses down_proj: see `part`."""
        self.part(projection)

    def scaled(self, x: Tensor, scale: Tensor, projection: Projection, added: Tensor | None) -> Tensor:
        """y [C, N, d_model] of x [N, d_model] with the rows of a projection times `scale`: see `Mlp.scaled`."""

        def edit(rows: Tensor, tokens: Tensor, at: slice) -> Tensor:
            edited = rows * scale.to(rows.device)[:, None, at]
            return edited if added is None else edited + added.to(rows.device)[:, tokens, at]

        with torch.no_grad():
            routed = self._route(x)
        return self._through(routed, projection, edit)

    def without(self, x: Tensor, sets: Sequence[np.ndarray], projection: Projection) -> Sequence[Tensor]:
        """y [N, d_model] of x [N, d_model] without each set of rows of a projection: see `Mlp.without`."""
        self.part(projection)
        routed = self._route(x)
        hidden = {expert: (pairs, self._hidden(routed, expert, pairs)) for expert, pairs in routed.by_expert()}
        down = self.inside.down_proj
        full = routed.together(
            [linear(h, down[expert]) for expert, (_, h) in hidden.items()], [pairs for pairs, _ in hidden.values()]
        )

        def share(y: Tensor, neurons: np.ndarray) -> Tensor:
            y = y.clone()
            for expert, rows in self._of_experts(neurons):
                if expert in hidden:
                    pairs, h = hidden[expert]
                    chosen = torch.as_tensor(rows, device=h.device)
                    y[pairs // routed.index.shape[1]] -= linear(h[:, chosen], down[expert][:, chosen])
            return y

        return taken_off(full, sets, share)

    def edit_rows(self, projection: Projection, scale: Tensor, added: Tensor | None) -> "_Replaced":
        """Edits the rows of a projection in all later calls: see `Mlp.edit_rows`."""
        self.part(projection)

        def forward(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            length = len(x) // len(scale)

            def edit(rows: Tensor, tokens: Tensor, at: slice) -> Tensor:
                edited = rows * scale.to(rows.device)[:, at][tokens // length]
                return edited if added is None else edited + added.to(rows.device).flatten(0, 1)[:, at][tokens]

            return self._through(Routed(x, index, weights), projection, edit)

        return _Replaced(self.inside, forward)

    def watch(self, projection: Projection, keep: Callable[[Tensor], None]) -> Any:
        """Shows `keep` the neurons' values in all later calls: see `Mlp.watch`.

        The value of a neuron is r act(g) u, with the weight r of its expert: 0 for a token that is not routed to it.
        """
        self.part(projection)

        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            routed = Routed(*inputs)
            values = inputs[0].new_zeros(len(inputs[0]), self.d_ff)
            for expert, pairs in routed.by_expert():
                at = slice(expert * self.each, (expert + 1) * self.each)
                values[pairs // routed.index.shape[1], at] = self._hidden(routed, expert, pairs)
            keep(values)

        return self.inside.register_forward_pre_hook(hook)

    def directions(self, neurons: Sequence[int]) -> Tensor:
        """The direction that each neuron writes, [neurons, d_model]: its column of down_proj."""
        experts, rows = np.divmod(np.asarray(neurons, dtype=np.int64), self.each)
        columns: Tensor = self.inside.down_proj[torch.as_tensor(experts), :, torch.as_tensor(rows)]
        return columns

    def row_tensors(self, projection: Projection, neurons: np.ndarray) -> list[tuple[Tensor, Any]]:
        """The rows of these neurons in the weights: see `Mlp.row_tensors`."""
        part, weight = self.part(projection), self.inside.gate_up_proj
        experts, rows = (torch.as_tensor(part, device=weight.device) for part in np.divmod(neurons, self.each))
        return [(weight, (experts, part * self.each + rows))]

    def _of_experts(self, neurons: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """The experts of these neurons, each with its rows."""
        experts, rows = np.divmod(neurons, self.each)
        return [(int(expert), rows[experts == expert]) for expert in np.unique(experts)]

    def _route(self, x: Tensor) -> Routed:
        """The routing of the tokens x [N, d_model] by the model's own router."""
        routed: list[Routed] = []

        def stop(_: Any, inputs: tuple[Tensor, ...]) -> None:
            routed.append(Routed(*inputs))
            raise Stop

        handle = self.inside.register_forward_pre_hook(stop)
        try:
            self.module(x.reshape(1, -1, self.d_model))
        except Stop:
            pass
        finally:
            handle.remove()
        return routed[0]

    def _hidden(
        self, routed: Routed, expert: int, pairs: Tensor, projection: Projection = "gate_proj", edit: Edit | None = None
    ) -> Tensor:
        """The values of an expert's neurons for its pairs, [.., pairs, d_expert]."""
        tokens = pairs // routed.index.shape[1]
        both = nn.functional.linear(routed.x[tokens], self.inside.gate_up_proj[expert])
        gate, up = both.chunk(2, dim=-1)
        if edit is not None:
            at = slice(expert * self.each, (expert + 1) * self.each)
            if projection == "gate_proj":
                gate = edit(gate, tokens, at)
            else:
                up = edit(up, tokens, at)
        return (self.activation(gate) * up * routed.weights.flatten()[pairs, None]).to(routed.x.dtype)

    def _through(self, routed: Routed, projection: Projection = "gate_proj", edit: Edit | None = None) -> Tensor:
        """y [.., N, d_model], computed by the experts that have tokens."""
        self.part(projection)
        groups, down = routed.by_expert(), self.inside.down_proj
        parts = [
            nn.functional.linear(self._hidden(routed, expert, pairs, projection, edit), down[expert])
            for expert, pairs in groups
        ]
        return routed.together(parts, [pairs for _, pairs in groups])


class _Replaced:
    """A module whose forward pass is replaced until `remove` is called."""

    def __init__(self, module: Any, forward: Callable[..., Tensor]):
        self._module, self._own = module, vars(module).get("forward")
        module.forward = forward

    def remove(self) -> None:
        vars(self._module).pop("forward")
        if self._own is not None:
            self._module.forward = self._own


def experts_of(layer: Any, kind: str) -> Experts | None:
    """The experts of a decoder layer of a model of class `kind`; None if it has none.

    Raises:
        InputError: the experts have a form that is not supported, or there are shared experts.
    """
    blocks = [child for child in layer.children() if isinstance(getattr(child, "experts", None), nn.Module)]
    if not blocks:
        return None
    block = blocks[0]
    refused = f"{kind} is a mixture of experts of a form that is not supported: {LOOKED_FOR}"
    if beside := [name for name, _ in block.named_children() if "shared" in name]:
        raise InputError("model", f"{kind} is a mixture with shared experts ({beside[0]}), which is not supported")
    inside = block.experts
    shapes = {name: tuple(parameter.shape) for name, parameter in inside.named_parameters()}
    if len(blocks) > 1 or set(shapes) != {"gate_up_proj", "down_proj"} or len(activations_of(inside)) != 1:
        raise InputError("model", refused)
    gates, down = shapes["gate_up_proj"], shapes["down_proj"]
    if len(gates) != 3 or down != (gates[0], gates[2], gates[1] // 2):
        raise InputError("model", refused)
    [activation] = activations_of(inside)
    experts = Experts(block, inside, activation)
    if float(activation(torch.zeros(1))) != 0:
        raise InputError(
            "model", f"{kind}: act(0) of its experts must be 0, or a zeroed row of gate_proj is not silent"
        )
    if not inside.down_proj.is_meta:
        _check(experts, kind)
    return experts


@torch.no_grad()
def _check(experts: Experts, kind: str) -> None:
    weight = experts.inside.down_proj
    x = torch.linspace(-1, 1, 4 * experts.d_model, device=weight.device, dtype=weight.dtype).reshape(4, -1).sin()
    expected = experts.module(x[None])
    expected = expected[0] if isinstance(expected, tuple) else expected
    if not expected.isfinite().all():
        raise InputError("model", f"{kind}: its experts overflow: their weights are too large for float32")
    y = experts.scaled(x, x.new_ones(1, experts.d_ff), "gate_proj", None)
    gap = float((y - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
    if not gap < 1e-3:
        raise InputError(
            "model",
            f"{kind}: its experts do not compute down_proj(act(gate) * up) (relative difference {gap:.1e}); this "
            "family is not supported",
        )


def _by_expert(inside: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The function that computes experts, as transformers calls it."""
    [activation] = activations_of(inside)
    return Experts(None, inside, activation)._through(Routed(x, index, weights))


ALL_EXPERTS_FUNCTIONS.register(NAME, _by_expert)
