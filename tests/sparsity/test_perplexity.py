"""Perplexity against a loop over tokens."""

import math

import numpy as np
import pytest
import torch

from tasks.models.loading import Loaded
from tasks.runtime.errors import InputError
from tasks.sparsity.perplexity import perplexity
from tests.tiny import tiny_model

TOKENS = [(11 * i * i + 5) % 250 for i in range(50)]


def test_equals_a_loop_over_the_tokens():
    model = tiny_model("llama")
    losses = []
    for start in range(0, 48, 16):
        ids = TOKENS[start : start + 16]
        values = [
            -float(model(torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)[ids[i]]) for i in range(1, len(ids))
        ]
        losses.append(sum(values) / 15)
    found = perplexity(Loaded(model, None), TOKENS, 16)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-9)
    assert found.tokens == 45
    assert found.ppl == pytest.approx(math.exp(sum(losses) / 3))
    assert found.stderr == pytest.approx(math.sqrt(sum((x - sum(losses) / 3) ** 2 for x in losses) / 2 / 3))


def test_a_single_window_has_no_standard_error():
    found = perplexity(Loaded(tiny_model("llama", torch.float32), None), TOKENS, 50)
    assert found.tokens == 49
    assert math.isnan(found.stderr)


@pytest.mark.parametrize(
    ("tokens", "window", "message"),
    [(TOKENS, 1, "from 2 to"), (TOKENS, 513, "context of 512"), (TOKENS, 51, "50 tokens, fewer than a window of 51")],
)
def test_refused(tokens, window, message):
    with pytest.raises(InputError, match=message):
        perplexity(Loaded(tiny_model("llama", torch.float32), None), tokens, window)
