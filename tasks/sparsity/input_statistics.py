"""What a calibration pass leaves behind of the inputs of a linear layer: their squared norms, or their Hessian."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class InputStatistics:
    """Sums over the calibration sequences of the inputs of some linear layers, in float32 or, if they are, float64.

    Args:
        linears: the layers by name.
        products: gather X X^T, else only its diagonal.

    Attributes:
        sequences: by name, how many sequences have passed; a sequence is one call.
    """

    def __init__(self, linears: dict[str, nn.Linear], *, products: bool):
        self._linears = linears
        self._products = products
        self._sums: dict[str, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None  # q, k and v have the same input, and gate and up
        self.sequences: dict[str, int] = dict.fromkeys(linears, 0)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """In this context whatever passes through the linear layers is added."""
        handles = [
            linear.register_forward_pre_hook(lambda _, inputs, name=name: self._add(name, inputs[0]))
            for name, linear in self._linears.items()
        ]
        try:
            yield
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def _add(self, name: str, x: Tensor) -> None:
        if self._last is None or self._last[0] is not x:
            rows = x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
            self._last = x, rows.T @ rows if self._products else (rows * rows).sum(0)
        if name in self._sums:
            self._sums[name] += self._last[1]
        else:
            self._sums[name] = self._last[1].clone()
        self.sequences[name] += 1

    def squared_norms(self, name: str) -> Tensor:
        """||X_j||_2^2 of each input over the tokens of a sequence, mean over the sequences, [d_in]."""
        return self._sums[name] / self.sequences[name]

    def hessian(self, name: str) -> Tensor:
        """H = 2 X X^T of a sequence, mean over the sequences, [d_in, d_in] (2301.00774; scaled as its code)."""
        return self._sums[name] * (2 / self.sequences[name])
