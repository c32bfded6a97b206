"""The computation of the matrix products of linear layers on CPUs and GPUs.

On a CPU float32 products go to oneDNN: PyTorch's default, MKL, is slower on processors that are not Intel's.
Matrices in bfloat16 are widened before (`tasks.models.stored`).

On a GPU, matrices in bfloat16 are used directly. The float32 activations are split into bfloat16 pieces, each the
rounded rest of those before it, whose products are summed in float32: two pieces hold 16 bits of every number, three
hold all 24. So a product has nearly the precision of float32 at a third to a half of the speed of bfloat16.

bfloat16 as a `Precision` is a choice of the caller. Its products round to 8 bits, so only the difference that an edit
makes is computed with them: with x0 and y0 = W x0 of the unedited pass, y = y0 + W (x - x0). Sums, norms, residuals,
attention and the output embedding stay float32.
"""

import os
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tasks.models.stored import is_copy, stored_of
from tasks.runtime.errors import InputError

Precision = Literal["float32", "bfloat16"]

PIECES = "DSM_PIECES"

# What PyTorch's own compiler calls; None where PyTorch was built without oneDNN.
_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def pieces() -> int:
    """Into how many bfloat16 pieces activations are split on a GPU: DSM_PIECES, 2 or 3; 2 by default.

    Raises:
        InputError: it is something else.
    """
    text = os.environ.get(PIECES) or "2"
    if text not in ("2", "3"):
        raise InputError(PIECES, f"must be 2 or 3, not {text!r}")
    return int(text)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 products of its own; emulated ones take five times as long as float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(there and name.endswith("bf16") for name, there in torch.cpu.get_capabilities().items())


class Products(TorchFunctionMode):
    """Inside this context linear layers compute by `linear` and keep what they computed, if `kept` is given."""

    def __init__(self, kept: "Kept | None" = None):
        super().__init__()
        self._kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.linear:
            return func(*args, **(kwargs or {}))
        y = linear(*args, **(kwargs or {}))
        if self._kept is not None:
            self._kept.put(args[0], args[1], y)
        return y


class Differences(TorchFunctionMode):
    """Inside this context linear layers compute the difference to what was kept, in bfloat16."""

    def __init__(self, kept: "Kept"):
        super().__init__()
        self._kept = kept
        self._last: tuple[Tensor, Tensor] | None = None  # several layers in a row have the same input

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.linear:
            return func(*args, **(kwargs or {}))
        x, weight = args[:2]
        x0, y0, rounded = self._kept.get(x, weight)
        if self._last is None or self._last[0] is not x:
            runs = x if x.dim() > 2 else x.unflatten(0, (-1, len(x0)))
            self._last = x, (runs - x0).bfloat16()
        y = y0 + func(self._last[1], rounded)
        return y if x.dim() > 2 else y.flatten(0, 1)


class Kept:
    """Inputs and outputs of the linear layers in the unedited pass, and their weights in bfloat16.

    Inputs are [runs, tokens, d_in]. In the MLP of OPT they are [runs * tokens, d_in], and always of the same tokens.

    Args:
        rounded: bfloat16 copies by the id of the weight; shared by all packs of a model.
    """

    def __init__(self, rounded: dict[int, Tensor]):
        self._rounded = rounded
        self._pairs: dict[tuple[int, int | None], tuple[Tensor, Tensor]] = {}

    def put(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
        """Keeps one product by its number of tokens: the last layer is called twice, for all tokens and for a few."""
        weight = stored_of(weight)
        self._pairs[id(weight), _tokens(x)] = x, y
        if id(weight) not in self._rounded:
            self._rounded[id(weight)] = weight.bfloat16()

    def get(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input and output of the unedited pass for an input of this length, and the rounded weight."""
        stored = stored_of(weight)
        rounded = weight if weight.dtype == torch.bfloat16 else self._rounded[id(stored)].to(x.device)
        return *self._pairs[id(stored), _tokens(x)], rounded


def _tokens(x: Tensor) -> int | None:
    """The number of tokens of each run of an input; None if the runs are not in a dimension of their own."""
    return x.shape[-2] if x.dim() > 2 else None


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` in the precision of the input; the weight takes no gradient where it is not plain.

    By oneDNN on a CPU where it can, by pieces where the weight is in bfloat16 and the input is not.
    """
    if weight.dtype == torch.bfloat16 and input.dtype != torch.bfloat16:
        split: Tensor = _InPieces.apply(input, weight)  # type: ignore[no-untyped-call]
        return split if bias is None else split + bias
    # The memory of a copied weight is reused, so no graph may keep it.
    if weight.requires_grad or not (is_copy(weight) or _by_onednn(input)):
        return torch.nn.functional.linear(input, weight, bias)
    if input.requires_grad and torch.is_grad_enabled():
        result: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return _float32(input, weight, bias)


def _by_onednn(x: Tensor) -> bool:
    return _onednn is not None and x.device.type == "cpu" and x.dtype == torch.float32


def _float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not _by_onednn(x):
        return torch.nn.functional.linear(x, weight, bias)
    # oneDNN computes a single row differently, so the last digits would depend on how many rows fit into memory.
    single = x.numel() == x.shape[-1]
    rows = x.reshape(1, -1).expand(2, -1).contiguous() if single else x
    result: Tensor = _onednn(rows, weight, bias, "none", [], "")
    return result[0].reshape(*x.shape[:-1], -1) if single else result


def _keep(ctx: Any, weight: Tensor) -> None:
    """Keeps a weight for the backward pass; for a copy, its module, whose weight is then copied again."""
    if is_copy(weight):
        ctx.module = vars(weight)["module"]
    else:
        ctx.module = None
        ctx.save_for_backward(weight)


def _kept(ctx: Any, gradient: Tensor) -> Tensor:
    if ctx.module is None:
        weight: Tensor = ctx.saved_tensors[0]
        return weight
    return cast(Tensor, ctx.module.weight).to(gradient.device)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        _keep(ctx, weight)
        return _float32(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _float32(gradient.contiguous(), _kept(ctx, gradient).float().t(), None), None, None


ROWS = 1 << 14  # of the output embedding that are multiplied with at once


def linear_by_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T for a matrix with very many rows, some rows at a time: few rows are widened or moved at once.

    In float32 on a CPU the result is that of the same slices of the matrix in float32, bit for bit.
    """
    if weight.requires_grad or x.dtype != torch.float32 or x.device.type != "cpu":
        return linear(x, weight)
    result: Tensor = _ByRows.apply(x, weight)  # type: ignore[no-untyped-call]
    return result


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        room = _room(weight)
        return torch.cat([linear(x, _wide(part, room)) for part in torch.split(weight, ROWS)], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        room = _room(weight)
        parts = zip(torch.split(gradient, ROWS, dim=-1), torch.split(weight, ROWS), strict=True)
        total: Tensor | None = None
        for by, part in parts:
            product = linear(by.contiguous(), _wide(part, room).t())
            total = product if total is None else total + product
        assert total is not None
        return total, None


def _room(weight: Tensor) -> Tensor | None:
    """Memory for some rows in float32, used again for the next rows; None if the weight is in float32."""
    return None if weight.dtype == torch.float32 else weight.new_empty(ROWS, weight.shape[1], dtype=torch.float32)


def _wide(part: Tensor, room: Tensor | None) -> Tensor:
    return part if room is None else room[: len(part)].copy_(part)


class _InPieces(torch.autograd.Function):
    """x W^T of float32 x and bfloat16 W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        _keep(ctx, weight)
        return in_pieces(x, weight.t(), pieces())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return in_pieces(gradient, _kept(ctx, gradient), pieces()), None


def in_pieces(x: Tensor, matrix: Tensor, number: int) -> Tensor:
    """x M in float32 of x [.., k] in float32 and M [k, m] in bfloat16, by `number` bfloat16 pieces of x."""
    rest, parts = x.reshape(-1, x.shape[-1]), []
    for _ in range(number):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1]
    stacked = torch.cat(parts)
    if x.device.type == "cuda":
        y = torch.mm(stacked, matrix, out_dtype=torch.float32)
    else:  # the same numbers without the hardware: products of bfloat16 numbers are exact in float32
        y = stacked.float() @ matrix.float()
    return y.view(number, -1, y.shape[-1]).sum(0).view(*x.shape[:-1], -1)
