"""How a model calls its decoder layers: the keyword arguments, recorded once and looked up for a pack of sequences."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from tasks.models.attention import tree_mask
from tasks.models.packing import Pack
from tasks.models.products import Products

Arguments = dict[str, Any]


class Stop(Exception):
    """Ends a forward pass when the rest of it is not needed."""


CACHES = ("past_key_values", "layer_past")  # what the argument is called that a decoder layer takes a cache by


class KeysAndValues:
    """Acts as a cache: gives a run of a few queries the last layer's keys and values of all tokens."""

    def __init__(self) -> None:
        self.stored: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.stored is None:
            self.stored = key, value
            raise Stop
        return self.stored


@contextmanager
def handing_on(layers: Sequence[Any]) -> Iterator[list[tuple[Tensor, Arguments]]]:
    """A context in which decoder layers compute nothing and return their input.

    In some families, a layer returns a tuple whose first item is the residual; one call of the first layer shows it.

    Yields:
        A list that is filled with the arguments of each call: the residual, and the other arguments by name.
    """
    calls: list[tuple[Tensor, Arguments]] = []
    in_tuple: list[bool] = []

    def forward(layer: Any, own: Any, hidden: Tensor, *positional: Any, **named: Any) -> Any:
        bound = signature(type(layer).forward).bind(layer, hidden, *positional, **named)
        if not in_tuple:
            with Products():
                in_tuple.append(isinstance(own(hidden, *positional, **named), tuple))
        _, _, *others = bound.signature.parameters.values()
        given = {other.name: bound.arguments[other.name] for other in others if other.name in bound.arguments}
        for other in others:
            if other.kind is Parameter.VAR_KEYWORD:
                given |= given.pop(other.name, {})
        calls.append((hidden, given))
        return (hidden,) if in_tuple[0] else hidden

    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(forward, layer, layer.forward)
        yield calls
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = own


class LayerCalls:
    """The keyword arguments (masks, rotary tables, ..) that each decoder layer gets from the model's own forward pass.

    Args:
        body: the model without its output embedding.

    Attributes:
        cache: the name of the argument that takes a cache.
    """

    def __init__(self, body: Any, layers: list[Any]):
        self._body = body
        self._layers = layers
        self._recorded: list[Arguments] = []
        taken = signature(type(layers[-1]).forward).parameters
        self.cache = next((name for name in CACHES if name in taken), CACHES[0])

    @torch.no_grad()
    def learn(self, length: int, device: torch.device) -> None:
        """Records the arguments for a sequence of `length` tokens, if no longer one has been recorded."""
        if self._recorded and self._recorded[0]["position_ids"].shape[-1] >= length:
            return
        with handing_on(self._layers) as passed:
            self._body(input_ids=torch.zeros((1, length), dtype=torch.long, device=device), use_cache=False)
        calls = [arguments for _, arguments in passed]
        for call in calls:
            if call.get("position_ids") is None:
                call["position_ids"] = torch.arange(length, device=device).unsqueeze(0)
        self._recorded = calls

    def arguments(self, packed: Pack) -> list[Arguments]:
        """The arguments of each layer for a pack: the recorded ones, looked up at each token's depth.

        The last layer's also have the key "reads": the mask and positions of the reads alone.
        """
        at, reads = packed.positions, packed.reads
        allowed: dict[int, Tensor] = {}  # few different masks: full attention, sliding windows
        trees: dict[int, Any] = {}
        by_layer = []
        for call in self._recorded:
            mask = call.get("attention_mask")
            if id(mask) not in allowed:
                allowed[id(mask)] = packed.ancestors
                if mask is not None:  # sliding windows: the recorded mask says which distances a layer sees
                    near = mask[0, 0][at[:, None], at[None, :]]
                    allowed[id(mask)] = packed.ancestors & (near if near.dtype == torch.bool else near >= 0)
                trees[id(mask)] = tree_mask(allowed[id(mask)], packed.branches)
            arguments = call | {"attention_mask": trees[id(mask)], "position_ids": call["position_ids"][:, at]}
            if (rotary := call.get("position_embeddings")) is not None:
                arguments["position_embeddings"] = tuple(part[:, at.to(part.device)] for part in rotary)
            by_layer.append(arguments)
        last = by_layer[-1]
        last["reads"] = {
            "attention_mask": allowed[id(self._recorded[-1].get("attention_mask"))][reads],
            "position_ids": last["position_ids"][:, reads],
        }
        if "position_embeddings" in last and last["position_embeddings"] is not None:
            last["reads"]["position_embeddings"] = tuple(
                part[:, reads.to(part.device)] for part in last["position_embeddings"]
            )
        return by_layer
