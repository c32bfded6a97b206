"""Quadrature on paths whose integrals are known in closed form."""

import math

import pytest
import torch

from tasks.method.quadrature import adaptive
from tests.method.oracles import gauss_legendre, riemann_right


def path_of(functions):
    """The path of F(s) = sum of f_j(s_j), which separates: score j is f_j(1) - f_j(0)."""

    def evaluate(alphas):
        asked.extend(alphas)
        values = torch.tensor([sum(f(a) for f, _ in functions) for a in alphas], dtype=torch.float64)
        gradients = torch.tensor([[d(a) for _, d in functions] for a in alphas], dtype=torch.float64)
        return values, gradients

    asked = []
    value, gradient = evaluate([1.0])
    asked.clear()
    return evaluate, (value[0], gradient[0]), asked


def power(n, weight=1.0):
    return (lambda a: weight * a**n), (lambda a: weight * n * a ** (n - 1))


def cliff(at, width, height):
    def value(a):
        return height * (1 + math.tanh((a - at) / width / 2)) / 2

    def slope(a):
        p = value(a) / height
        return height * p * (1 - p) / width

    return value, slope


SMOOTH = [power(1), power(2, -3.0), power(3, 1.5), power(4, 0.5), power(5, 2.0)]


def test_four_nodes_are_enough_for_a_smooth_path():
    evaluate, one, asked = path_of(SMOOTH)
    result = adaptive(evaluate, one, tolerance=1e-9, max_nodes=64, stability=0.99)
    torch.testing.assert_close(result.scores, torch.tensor([1.0, -3.0, 1.5, 0.5, 2.0], dtype=torch.float64))
    assert result.nodes == len(asked) == 4
    assert abs(result.gap) <= result.error < 1e-9


def test_a_cliff_gets_the_nodes():
    steep = cliff(0.13, 0.004, 7.0)
    evaluate, one, asked = path_of([*SMOOTH, steep])
    result = adaptive(evaluate, one, tolerance=0.01, max_nodes=200)
    exact = torch.tensor([1.0, -3.0, 1.5, 0.5, 2.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(result.scores, exact, atol=0.1, rtol=0)
    assert result.converged(0.01, 0.99)
    assert result.nodes < 60
    assert sum(a < 0.25 for a in asked) > len(asked) / 2
    for fixed in (riemann_right(evaluate, one, 20), gauss_legendre(evaluate, one, 12)):
        assert fixed.error > 10 * result.error


def test_a_ranking_that_still_moves_costs_more_nodes():
    # Two bumps of equal and opposite area: the sum of the scores is right for any rule, single scores are not.
    bumps = [(lambda a, c=c: 0.0, lambda a, c=c: c * math.cos(18 * math.pi * a)) for c in (1.0, -1.0, 0.5, -0.5)]
    evaluate, one, _ = path_of([*bumps, power(1, 1e-3)])
    first = adaptive(evaluate, one, tolerance=0.01, max_nodes=256, stability=-1.0)
    settled = adaptive(evaluate, one, tolerance=0.01, max_nodes=256, stability=0.99)
    assert first.nodes == 4
    assert settled.nodes > 4
    assert settled.scores[:4].abs().max() < first.scores[:4].abs().max() / 10


def test_the_node_budget_is_kept_and_told():
    evaluate, one, asked = path_of([cliff(0.31, 1e-5, 9.0), power(2)])
    result = adaptive(evaluate, one, tolerance=1e-6, max_nodes=21)
    assert result.nodes == len(asked) == 20
    assert not result.converged(1e-6, 0.99)


@pytest.mark.parametrize("steps", [1, 20])
def test_the_rule_of_the_paper(steps):
    evaluate, one, asked = path_of([power(2)])
    result = riemann_right(evaluate, one, steps)
    assert float(result.scores[0]) == pytest.approx(sum(2 * k / steps for k in range(1, steps + 1)) / steps)
    assert result.nodes == steps - 1
    assert result.gap == pytest.approx(1 / steps)
    assert math.isnan(result.stability)
    assert result.converged(1.0, 0.99)
    assert sorted(asked) == [k / steps for k in range(steps)]
