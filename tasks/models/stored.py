"""Weights that keep their stored type and place, and are copied to float32 or to the computing device during use.

A model in bfloat16 needs half of the memory of float32, and every bfloat16 number is also a float32 number. So the
matrices of linear layers and embeddings keep their stored type. The matrices of a decoder layer are converted to
float32 ("widened") while the layer runs. An embedding converts the rows that it looks up, and the output embedding
converts some rows at a time. All other parameters are small and are converted once. `DecoderStack` computes the same
bits as with a model that is stored in float32.

On a GPU, the products of `tasks.models.products` take bfloat16 matrices directly. Where the model does not fit there,
the matrices of the decoder layers stay in the memory of the host, or in the mapped files, and those of one layer at a
time are on the GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tasks.models.structure import decoder_layers

NARROW = (torch.bfloat16, torch.float16)


def stored_of(weight: Tensor) -> Tensor:
    """The matrix that a temporary copy was made of; always the same object. Another matrix is returned as it is."""
    stored: Tensor = vars(weight).get("stored", weight)
    return stored


def is_copy(weight: Tensor) -> bool:
    """Whether a matrix is a temporary copy, whose memory is used again: no graph may keep it."""
    return "stored" in vars(weight)


class Unit:
    """A module whose matrices are copied together: a decoder layer.

    Args:
        device: where the module computes; None for where its matrices are.
    """

    def __init__(self, module: nn.Module, device: torch.device | None = None):
        self._device = device
        self._linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
        self._users = 0

    def __bool__(self) -> bool:
        return any(self._kind_of_copy(module, False) for module in self._linears)

    @contextmanager
    def used(self, *, as_stored: bool = False, again: bool = False) -> Iterator[None]:
        """Copies the matrices inside the `with` block. A nested use changes nothing.

        Args:
            as_stored: leave bfloat16 matrices in bfloat16, for products that accept them.
            again: reuse the memory of the copies for the next unit. New memory costs as much time as the conversion.
                Nothing may hold a reference to them, as the graph of plain products does.
        """
        copied: list[nn.Linear] = []
        if not self._users:
            for module in self._linears:
                if kind := self._kind_of_copy(module, as_stored):
                    module._parameters["weight"] = _copy(module, _room(kind, again))
                    copied.append(module)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            for module in copied:
                if again:
                    _rooms.setdefault(_kind(module.weight), []).append(module.weight.data)
                module._parameters["weight"] = stored_of(module.weight)  # type: ignore[assignment]

    def _kind_of_copy(self, module: nn.Linear, as_stored: bool) -> "_Kind | None":
        """None if the stored matrix is used itself."""
        stored = module.weight
        keeps = stored.dtype not in NARROW or (as_stored and stored.dtype == torch.bfloat16)
        kind = _Kind(stored.shape, stored.dtype if keeps else torch.float32, self._device or stored.device)
        return None if kind == _kind(stored) else kind


class _Kind(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


_rooms: dict[_Kind, list[Tensor]] = {}  # memory to reuse for the next copies


def _kind(weight: Tensor) -> _Kind:
    return _Kind(weight.shape, weight.dtype, weight.device)


def _room(kind: _Kind, again: bool) -> Tensor:
    free = _rooms.get(kind) if again else None
    return free.pop() if free else torch.empty(kind.shape, dtype=kind.dtype, device=kind.device)


def _copy(module: nn.Linear, room: Tensor) -> nn.Parameter:
    """The module's matrix in this memory; its attributes are the matrix, `stored`, and `module`."""
    copy = nn.Parameter(room.copy_(module.weight), requires_grad=False)
    vars(copy).update(stored=module.weight, module=module)
    return copy


def keep_as_stored(model: Any, device: torch.device | None = None) -> None:
    """Makes the model compute in float32, whatever type its matrices are stored in.

    Small parameters become float32. Modules with matrices in 16 bits widen them in their forward pass.

    Args:
        device: moves the model there, except the matrices of its decoder layers, which a layer copies there in its
            forward pass.
    """
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    for parameter in model.parameters():
        if parameter.dtype in NARROW and id(parameter) not in matrices:
            parameter.data = parameter.data.float()
    layers = decoder_layers(model)
    if device is not None:
        stay = {id(weight) for weight in layer_matrices(model)}
        model._apply(lambda tensor: tensor if id(tensor) in stay else tensor.to(device))
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
        elif unit := Unit(module, device):
            vars(module).update(dsm_unit=unit, forward=partial(_use, unit, module.forward))


def layer_matrices(model: Any) -> list[Tensor]:
    """The matrices of the linear layers in all decoder layers."""
    return [m.weight for layer in decoder_layers(model) for m in layer.modules() if isinstance(m, nn.Linear)]


def kept_as_stored(model: Any) -> bool:
    """Whether `keep_as_stored` was called with this model and it has embeddings in 16 bits."""
    forward = vars(model.get_input_embeddings()).get("forward")
    return isinstance(forward, partial) and forward.func is _look_up


def unit_of(module: Any) -> Unit:
    """The unit of a decoder layer; a unit without matrices if nothing has to be copied."""
    unit: Unit | None = vars(module).get("dsm_unit")
    return unit or Unit(nn.Identity())


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
