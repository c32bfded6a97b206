"""How the matrix products of linear layers are computed, where that changes the time and not what is computed.

On a CPU float32 products go to oneDNN: PyTorch's default, MKL, leaves a third of the speed of processors that are not
Intel's. bfloat16 is a choice of the caller. Its products round to 8 bits, so only the difference that an edit makes is
computed with them: with x0 and y0 = W x0 of the unedited pass, y = y0 + W (x - x0). Sums, norms, residuals, attention
and the output embedding stay float32.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Precision = Literal["float32", "bfloat16"]

# What PyTorch's own compiler calls; None where PyTorch was built without oneDNN.
_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


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
            self._last = x, (x - x0).bfloat16()
        return y0 + func(self._last[1], rounded)


class Kept:
    """Inputs and outputs of the linear layers in the unedited pass, and their weights in bfloat16.

    Args:
        rounded: bfloat16 copies by the id of the weight; shared by all packs of a model.
    """

    def __init__(self, rounded: dict[int, Tensor]):
        self._rounded = rounded
        self._pairs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def put(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
        """Keeps one product. The last decoder layer is called twice, for all tokens and for a few: by their number."""
        self._pairs[id(weight), x.shape[-2]] = x, y
        if id(weight) not in self._rounded:
            self._rounded[id(weight)] = weight.bfloat16()

    def get(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input and output of the unedited pass for an input of this length, and the rounded weight."""
        return *self._pairs[id(weight), x.shape[-2]], self._rounded[id(weight)]


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by oneDNN where it can; the weight takes no gradient there."""
    if _onednn is None or input.device.type != "cpu" or input.dtype != torch.float32 or weight.requires_grad:
        return torch.nn.functional.linear(input, weight, bias)
    if input.requires_grad and torch.is_grad_enabled():
        result: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return _float32(input, weight, bias)


def _float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # A single row has a routine of its own: its last digits would depend on how many rows fit into memory at once.
    single = x.numel() == x.shape[-1]
    rows = x.reshape(1, -1).expand(2, -1).contiguous() if single else x
    result: Tensor = _onednn(rows, weight, bias, "none", [], "")
    return result[0].reshape(*x.shape[:-1], -1) if single else result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _float32(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _float32(gradient.contiguous(), weight.t(), None), None, None
