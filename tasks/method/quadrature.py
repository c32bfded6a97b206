"""Integrals along the path from 0 to 1 of a function whose value and gradient can be computed at any point.

Every rule returns its completeness gap: the sum of the scores minus F(1) - F(0), which is 0 for the exact integral.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from scipy.stats import spearmanr
from torch import Tensor

# alphas [m] -> (F, dF/ds) at each of them: float64 [m] and [m, neurons]
Evaluate = Callable[[Sequence[float]], tuple[Tensor, Tensor]]

Key = TypeVar("Key")

# Boole's rule on a panel: five equally spaced nodes, exact for polynomials of degree 5. The halves of a panel use all
# of its nodes again, and the ends of panels are nodes too, so that F there comes with them.
BOOLE = torch.tensor([7.0, 32.0, 12.0, 32.0, 7.0], dtype=torch.float64) / 90
# Simpson's rule on the halves of the panel, from the same nodes: how far it is off says how settled the scores are.
SIMPSON = torch.tensor([1.0, 4.0, 2.0, 4.0, 1.0], dtype=torch.float64) / 12
FIRST = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Integral:
    """Scores of one layer.

    Attributes:
        scores: float64 [neurons], in units of F (logits).
        difference: F(1) - F(0).
        gap: sum of the scores minus `difference`.
        error: sum of the panels' absolute gaps; a bound on |gap| in which nothing cancels (|gap| for a fixed rule).
        nodes: gradient evaluations spent, not counting the one at 1, which all layers share.
        stability: rank correlation (Spearman) of the scores with those of a rule of lower order on the same nodes; NaN
            for a fixed rule.
    """

    scores: Tensor
    difference: float
    gap: float
    error: float
    nodes: int
    stability: float = math.nan

    def converged(self, tolerance: float, stability: float) -> bool:
        """Whether the error is allowed and the ranking of the neurons has settled (the former alone if NaN)."""
        return self.error <= allowed(self.difference, tolerance) and not self.stability < stability


def allowed(difference: float, tolerance: float) -> float:
    """The error that a layer is allowed: a part of what its scores add up to, or of one logit where that is less."""
    return tolerance * max(abs(difference), 1.0)


# Asks for points of the path, is sent F and dF/ds there, and returns the integral in the end.
Rule = Generator[Sequence[float], tuple[Tensor, Tensor], Integral]


def integrate(rule: Rule, evaluate: Evaluate) -> Integral:
    """The integral by a rule along one path."""
    return integrate_all({None: rule}, lambda wanted: {None: evaluate(wanted[None])})[None]


def integrate_all(
    rules: Mapping[Key, Rule], evaluate: Callable[[Mapping[Key, Sequence[float]]], Mapping[Key, tuple[Tensor, Tensor]]]
) -> dict[Key, Integral]:
    """The integrals along several paths. Each round evaluates what all rules that have not ended ask for.

    Args:
        evaluate: of each path, the points that are wanted -> F and dF/ds there.
    """
    wanted: dict[Key, Sequence[float]] = {}
    integrals: dict[Key, Integral] = {}

    def ask(key: Key, sent: tuple[Tensor, Tensor] | None) -> None:
        try:
            wanted[key] = rules[key].send(sent)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            integrals[key] = end.value

    for key in rules:
        ask(key, None)
    while wanted:
        values = evaluate(dict(wanted))
        wanted.clear()
        for key, value in values.items():
            ask(key, value)
    return {key: integrals[key] for key in rules}


def riemann_rule(one: tuple[Tensor, Tensor], steps: int) -> Rule:
    """The paper's rule: the mean of the gradient at k / steps, k = 1..steps (2507.09185 Eq. 4).

    Args:
        one: F and dF/ds at 1.
    """
    values, gradients = yield [k / steps for k in range(steps)]
    scores = (gradients[1:].sum(0) + one[1]) / steps
    return _fixed(scores, float(one[0] - values[0]), steps - 1)


def _fixed(scores: Tensor, difference: float, nodes: int) -> Integral:
    gap = float(scores.sum()) - difference
    return Integral(scores, difference, gap, abs(gap), nodes)


def adaptive_rule(one: tuple[Tensor, Tensor], *, tolerance: float, max_nodes: int, stability: float = 0.99) -> Rule:
    """Boole's rule on panels that are halved until the scores add up and their ranking has settled.

    A path through an MLP is smooth in most layers and has cliffs in some (a neuron with a very large activation is
    switched on), which no fixed rule of a practical size gets right. So the panel with the largest gap is halved until
    the gaps add up to at most `tolerance` times max(|F(1) - F(0)|, 1), then the one where Boole's and Simpson's rules
    differ most until the rank correlation of their scores is at least `stability`; or until another halving (4 new
    nodes) would need more than `max_nodes` gradient evaluations.

    Args:
        one: F and dF/ds at 1.
    """
    first = yield FIRST
    at = dict(zip(FIRST, zip(*first, strict=True), strict=True)) | {1.0: one}

    def measured(panel: Panel) -> _Measured:
        gradients = torch.stack([at[alpha][1] for alpha in _nodes(panel)])
        size = panel[1] - panel[0]
        scores, coarse = size * (BOOLE @ gradients), size * (SIMPSON @ gradients)
        return _Measured(scores, coarse, float(scores.sum() - (at[panel[1]][0] - at[panel[0]][0])))

    def result() -> Integral:
        scores, coarse = (
            torch.stack([getattr(m, rule) for m in panels.values()]).sum(0) for rule in ("scores", "coarse")
        )
        gaps = [m.gap for m in panels.values()]
        return Integral(
            scores=scores,
            difference=float(at[1.0][0] - at[0.0][0]),
            gap=sum(gaps),
            error=sum(map(abs, gaps)),
            nodes=len(at) - 1,
            stability=float(spearmanr(scores, coarse).statistic),
        )

    panels = {(0.0, 1.0): measured((0.0, 1.0))}
    while not (integral := result()).converged(tolerance, stability) and integral.nodes + 4 <= max_nodes:
        unsettled = integral.error <= allowed(integral.difference, tolerance)
        start, end = worst = max(panels, key=lambda p: panels[p].score_change if unsettled else abs(panels[p].gap))
        middle = (start + end) / 2
        halves = [(start, middle), (middle, end)]
        new = [alpha for half in halves for alpha in _nodes(half) if alpha not in at]
        more = yield new
        at |= dict(zip(new, zip(*more, strict=True), strict=True))
        del panels[worst]
        panels |= {half: measured(half) for half in halves}
    return integral


def adaptive(
    evaluate: Evaluate, one: tuple[Tensor, Tensor], *, tolerance: float, max_nodes: int, stability: float = 0.99
) -> Integral:
    """`adaptive_rule` along one path."""
    return integrate(adaptive_rule(one, tolerance=tolerance, max_nodes=max_nodes, stability=stability), evaluate)


Panel = tuple[float, float]


@dataclass(frozen=True)
class _Measured:
    """A panel's share of the scores by Boole's and by Simpson's rule, and the completeness gap of the former."""

    scores: Tensor
    coarse: Tensor
    gap: float

    @property
    def score_change(self) -> float:
        return float((self.scores - self.coarse).abs().sum())


def _nodes(panel: Panel) -> list[float]:
    start, end = panel
    return [start + (end - start) * k / 4 for k in range(5)]  # dyadic numbers: exact, and so good keys
