"""Integrated Hessians against autograd on the plain model, and by the sums of their rows."""

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss

from tasks.method.integrated_gradients import LayerPath
from tasks.method.interactions import interactions
from tasks.models.memory import Room
from tasks.models.stack import DecoderStack
from tests.method.oracles import PROMPTS, fixed_target
from tests.tiny import SIZES, tiny_model


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(SIZES, "intermediate_size", 6)
    return tiny_model("llama")


def by_definition(model, layer, nodes):
    """G and IG over both factors a and b, by second derivatives of the plain model with a hook on the gate."""
    gate = model.model.layers[layer].mlp.gate_proj
    points, weights = leggauss(nodes)
    points, weights = (points + 1) / 2, weights / 2
    values, scores = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for prompt in PROMPTS:
        target = fixed_target(model, prompt)

        def f(scale, prompt=prompt, target=target):
            handle = gate.register_forward_hook(lambda _, __, output: output * scale)
            try:
                return target(model(torch.tensor([prompt]), use_cache=False).logits[0, -1])
            finally:
                handle.remove()

        for a, weight in zip(points, weights, strict=True):
            at = torch.full((6,), float(a), dtype=torch.float64)
            scores += weight * torch.autograd.functional.jacobian(f, at)
            for b, other in zip(points, weights, strict=True):
                at = torch.full((6,), float(a * b), dtype=torch.float64)
                values += weight * other * a * b * torch.autograd.functional.hessian(f, at)
                values += weight * other * torch.diag(torch.autograd.functional.jacobian(f, at))
    return values.numpy() / len(PROMPTS), scores.numpy() / len(PROMPTS)


def test_integrated_hessians_are_those_of_the_definition(model):
    model.config._attn_implementation = "eager"
    expected, scores = by_definition(model, 1, 8)
    found = interactions(LayerPath(DecoderStack(model), PROMPTS), 1, range(6), nodes=16)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found.values, expected, atol=3e-4 * largest)
    np.testing.assert_allclose(found.scores, scores, atol=1e-4 * np.abs(scores).max())
    assert np.abs(expected - np.diag(expected.diagonal())).max() > 0.01 * largest  # the interactions are not negligible


@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
def test_rows_add_up_to_the_scores(model, projection):
    stack = DecoderStack(model)
    path = LayerPath(stack, PROMPTS, projection=projection)
    width = stack.width(projection)
    found = interactions(path, 0, range(width), nodes=16)
    largest = np.abs(found.scores).max()
    np.testing.assert_allclose(found.values.sum(1), found.scores, atol=5e-3 * largest)
    np.testing.assert_allclose(found.values, found.values.T, atol=1e-3 * largest)


def test_some_neurons_in_small_batches_are_those_of_all(model, monkeypatch):
    stack = DecoderStack(model)
    whole = interactions(LayerPath(stack, PROMPTS), 1, range(6))
    monkeypatch.setattr(Room, "backward_tokens", property(lambda room: 20))
    some = interactions(LayerPath(stack, PROMPTS), 1, [4, 1])
    np.testing.assert_allclose(some.values, whole.values[np.ix_([4, 1], [4, 1])], atol=1e-12)
    np.testing.assert_allclose(some.scores, whole.scores[[4, 1]], atol=1e-12)
    np.testing.assert_allclose(some.alone + some.shared, some.scores, atol=1e-15)
