"""Fast products against plain ones."""

import numpy as np
import pytest
import torch

from tasks.models.memory import Room
from tasks.models.products import Products, linear
from tasks.models.stack import DecoderStack
from tasks.models.sweep import logits_without
from tests.tiny import ALL, tiny_model

SEQUENCES = [[1, 2, 3, 9, 9], [1, 2, 3, 4], [1, 2, 7, 7, 7, 7]]


@pytest.mark.parametrize("bias", [None, torch.randn(7)])
def test_linear_and_its_gradient_equal_those_of_double_precision(bias):
    x, weight = torch.randn(2, 5, 16, requires_grad=True), torch.randn(7, 16)
    exact = x.detach().double().requires_grad_(True)
    expected = torch.nn.functional.linear(exact, weight.double(), None if bias is None else bias.double())
    y = linear(x, weight, bias)
    direction = torch.randn_like(y)
    (y * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-5, rtol=1e-5)


def test_only_linear_layers_are_redirected():
    with Products():
        assert torch.equal(torch.ones(2) @ torch.ones(2), torch.tensor(2.0))


def logits(stack, precision, sets, index=0):
    [packed] = stack.pack([[(sequence, [len(sequence) - 1])] for sequence in SEQUENCES])
    residuals = stack.clean(packed, precision)
    return residuals.logits, torch.cat(list(logits_without(stack, residuals, index, sets)))


@pytest.mark.parametrize("family", ALL)
def test_differences_in_bfloat16_are_exact_where_nothing_changes_and_close_elsewhere(family):
    stack = DecoderStack(tiny_model(family, torch.float32))
    nobody, some = np.array([], dtype=int), np.arange(0, 48, 5)
    clean, rounded = logits(stack, "bfloat16", [nobody, some])
    _, exact = logits(stack, "float32", [nobody, some])
    torch.testing.assert_close(rounded[0], clean, atol=1e-5, rtol=1e-5)
    change, error = ((second[1] - first).abs().max() for second, first in ((exact, exact[0]), (rounded, exact[1])))
    assert change > 0
    # The matrices of GPT-2 are transposed and stay in float32.
    assert error == 0 if family == "gpt2" else 0 < error < 0.05 * change


@pytest.mark.parametrize("copies", [1, 2])
def test_how_many_edits_run_at_once_does_not_matter(copies, monkeypatch):
    stack = DecoderStack(tiny_model("gemma3"))
    sets = [np.arange(n) for n in (3, 9, 20)]
    _, whole = logits(stack, "float32", sets)
    monkeypatch.setattr(Room, "forward_tokens", property(lambda room: 12 * copies))
    _, parts = logits(stack, "float32", sets)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)
