"""Statistics of the inputs of linear layers in a calibration pass: squared norms or the Hessian."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class InputStatistics:
    """Sums over the calibration sequences, in float32, or in float64 for float64 inputs.

    Args:
        linears: the linear layers by name.
        products: sum X X^T instead of only its diagonal.

    Attributes:
        sequences: the number of sequences (calls) by layer name.
    """

    def __init__(self, linears: dict[str, nn.Module], *, products: bool):
        self._linears = linears
        self._products = products
        self._sums: dict[str, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None  # q, k and v share their input, and so do gate and up
        self.sequences: dict[str, int] = dict.fromkeys(linears, 0)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """A context in which the inputs of the linear layers are added to the sums."""
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
        """H = 2 X X^T of a sequence, mean over the sequences, [d_in, d_in] (2301.00774; scaled as in its code)."""
        return self._sums[name] * (2 / self.sequences[name])
