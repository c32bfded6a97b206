"""Weights that stay in their stored type, and are converted to float32 while they are used.

A model in bfloat16 needs half of the memory of float32, and every bfloat16 number is also a float32 number. So the
matrices of linear layers and embeddings keep their stored type. The matrices of a decoder layer are converted to
float32 ("widened") while the layer runs. An embedding converts the rows that it looks up, and the output embedding
converts some rows at a time. All other parameters are small and are converted once. `DecoderStack` computes the same
bits as with the whole model in float32.

On a GPU, the products of `tasks.models.products` take bfloat16 matrices directly.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.structure import decoder_layers

NARROW = (torch.bfloat16, torch.float16)


class Wide(nn.Parameter):
    """A temporary float32 copy of a stored matrix.

    Attributes:
        stored: the matrix in its stored type.
        module: the module whose weight this copy is.
    """

    stored: Tensor
    module: nn.Module

    @staticmethod
    def of(module: nn.Module, room: Tensor | None = None) -> "Wide":
        stored: Any = module.weight
        found = Wide(stored.float() if room is None else room.copy_(stored), requires_grad=False)
        found.stored, found.module = stored, module
        return found


def stored_of(weight: Tensor) -> Tensor:
    """The matrix in its stored type; always the same object."""
    return weight.stored if isinstance(weight, Wide) else weight


class Unit:
    """A module whose matrices are widened together: a decoder layer."""

    def __init__(self, module: nn.Module):
        self._narrow = [m for m in module.modules() if isinstance(m, nn.Linear) and m.weight.dtype in NARROW]
        self._users = 0

    def __bool__(self) -> bool:
        return bool(self._narrow)

    @contextmanager
    def used(self, *, as_stored: bool = False, again: bool = False) -> Iterator[None]:
        """Widens the matrices inside the `with` block. A nested use changes nothing.

        Args:
            as_stored: leave bfloat16 matrices as they are, for products that accept them.
            again: reuse the memory of the widened matrices for the next unit. New memory costs as much time as the
                conversion. Nothing may hold a reference to them, as the graph of plain products does.
        """
        widened: list[nn.Linear] = []
        if not self._users:
            widened = [m for m in self._narrow if not (as_stored and m.weight.dtype == torch.bfloat16)]
        for module in widened:
            module._parameters["weight"] = Wide.of(module, _room(module.weight) if again else None)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            for module in widened:
                if again:
                    _rooms.setdefault(_kind(module.weight), []).append(module.weight.data)
                module._parameters["weight"] = stored_of(module.weight)  # type: ignore[assignment]


_rooms: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}  # memory to reuse for the next widened matrix


def _kind(weight: Tensor) -> tuple[torch.Size, torch.device]:
    return weight.shape, weight.device


def _room(weight: Tensor) -> Tensor:
    free = _rooms.get(_kind(weight))
    return free.pop() if free else torch.empty(weight.shape, dtype=torch.float32, device=weight.device)


def keep_as_stored(model: Any) -> None:
    """Makes the model compute in float32, whatever type its matrices are stored in.

    Small parameters become float32. Modules with matrices in 16 bits widen them in their forward pass.
    """
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    for parameter in model.parameters():
        if parameter.dtype in NARROW and id(parameter) not in matrices:
            parameter.data = parameter.data.float()
    layers = decoder_layers(model)
    output = model.get_output_embeddings()
    inside = {id(module) for layer in layers for module in layer.modules()}
    outside = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding) and id(m) not in inside]
    for module in [*layers, *outside]:
        if isinstance(module, nn.Embedding):
            if len(signature(type(module).forward).parameters) > 2:  # OPT's positions: not looked up by ids alone
                module.weight.data = module.weight.data.float()
            elif module.weight.dtype in NARROW:
                vars(module)["forward"] = partial(_look_up, module, module.forward)
        elif module is output and module.weight.dtype in NARROW:
            vars(module)["forward"] = partial(_by_rows, module)
        elif unit := Unit(module):
            vars(module).update(dsm_unit=unit, forward=partial(_use, unit, module.forward))


def kept_as_stored(model: Any) -> bool:
    """Whether `keep_as_stored` was called with this model and it has matrices in 16 bits."""
    forward = vars(model.get_input_embeddings()).get("forward")
    return isinstance(forward, partial) and forward.func is _look_up


def unit_of(module: Any) -> Unit:
    """The unit of a decoder layer; a unit without matrices if nothing has to be widened."""
    found: Unit | None = vars(module).get("dsm_unit")
    return found or Unit(nn.Identity())


def _use(unit: Unit, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with unit.used():
        return forward(*args, **kwargs)


def _by_rows(module: nn.Linear, x: Tensor) -> Tensor:
    """The forward pass of the output embedding, 16 384 rows at a time."""
    y = torch.cat([nn.functional.linear(x, part.float()) for part in torch.split(module.weight, 1 << 14)], dim=-1)
    return y if module.bias is None else y + module.bias


def _look_up(module: nn.Embedding, forward: Callable[..., Any], ids: Tensor) -> Any:
    """The forward pass of an embedding, with a widened table of only the rows that are looked up."""
    stored, padding = module.weight, module.padding_idx
    rows, places = torch.unique(ids, return_inverse=True)
    parameters: dict[str, Any] = module._parameters
    parameters["weight"] = nn.Parameter(stored[rows].float(), requires_grad=False)
    module.padding_idx = None  # it affects only the gradient of the table
    try:
        return forward(places)
    finally:
        parameters["weight"] = stored
        module.padding_idx = padding
