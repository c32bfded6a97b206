"""Integrals along the path from 0 to 1 of a function whose gradient and value can be computed at any point.

Every rule returns its completeness gap: the sum of the scores minus F(1) - F(0), which is 0 for the exact integral.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

# alphas [m] -> F at each of them [m]
Value = Callable[[Sequence[float]], list[float]]
# alphas [m] -> dF/ds at each of them, float64 [m, neurons]
Gradient = Callable[[Sequence[float]], Tensor]

PANEL = 4  # Gauss-Legendre nodes of one panel: enough where the path is smooth, cheap where a panel is split again


@dataclass(frozen=True)
class Integral:
    """Scores of one layer.

    Attributes:
        scores: float64 [neurons], in units of F (logits).
        difference: F(1) - F(0).
        gap: sum of the scores minus `difference`.
        error: sum of the panels' absolute gaps; a bound on |gap| in which nothing cancels (|gap| for a fixed rule).
        nodes: gradient evaluations spent.
    """

    scores: Tensor
    difference: float
    gap: float
    error: float
    nodes: int

    def converged(self, tolerance: float) -> bool:
        """Whether `error` is at most `tolerance` times max(|F(1) - F(0)|, 1)."""
        return self.error <= tolerance * max(abs(self.difference), 1.0)


@dataclass(frozen=True)
class _Panel:
    start: float
    end: float
    integral: Tensor
    gap: float


def riemann_right(value: Value, gradient: Gradient, steps: int) -> Integral:
    """The paper's rule: the mean of the gradient at k / steps, k = 1..steps (2507.09185 Eq. 4)."""
    scores = gradient([k / steps for k in range(1, steps + 1)]).mean(0)
    first, last = value([0.0, 1.0])
    gap = float(scores.sum()) - (last - first)
    return Integral(scores, last - first, gap, abs(gap), steps)


def gauss_legendre(value: Value, gradient: Gradient, nodes: int) -> Integral:
    """One Gauss-Legendre rule over the whole path."""
    first, last = value([0.0, 1.0])
    panel = _panel(gradient, 0.0, 1.0, first, last, nodes)
    return Integral(panel.integral, last - first, panel.gap, abs(panel.gap), nodes)


def adaptive(value: Value, gradient: Gradient, *, tolerance: float, max_nodes: int) -> Integral:
    """Gauss-Legendre panels; the one with the largest gap is halved until the gaps add up to little enough.

    Stops when they are at most `tolerance` times max(|F(1) - F(0)|, 1), or when another split would need more than
    `max_nodes` gradient evaluations. A path through an MLP is smooth in most layers and has cliffs in some (a neuron
    with a very large activation is switched on), which no fixed rule of a practical size gets right.
    """
    first, last = value([0.0, 1.0])
    allowed = tolerance * max(abs(last - first), 1.0)
    ends = {0.0: first, 1.0: last}
    panels = [_panel(gradient, 0.0, 1.0, first, last, PANEL)]
    nodes = PANEL
    while sum(abs(panel.gap) for panel in panels) > allowed and nodes + 2 * PANEL <= max_nodes:
        worst = max(panels, key=lambda panel: abs(panel.gap))
        middle = (worst.start + worst.end) / 2
        ends[middle] = value([middle])[0]
        panels.remove(worst)
        for start, end in ((worst.start, middle), (middle, worst.end)):
            panels.append(_panel(gradient, start, end, ends[start], ends[end], PANEL))
        nodes += 2 * PANEL
    return Integral(
        scores=torch.stack([panel.integral for panel in panels]).sum(0),
        difference=last - first,
        gap=sum(panel.gap for panel in panels),
        error=sum(abs(panel.gap) for panel in panels),
        nodes=nodes,
    )


def _panel(gradient: Gradient, start: float, end: float, at_start: float, at_end: float, nodes: int) -> _Panel:
    x, w = leggauss(nodes)
    alphas = (start + end) / 2 + (end - start) / 2 * x
    weights = torch.from_numpy(np.asarray(w) * (end - start) / 2)
    integral = weights @ gradient(alphas.tolist())
    return _Panel(start, end, integral, float(integral.sum()) - (at_end - at_start))
