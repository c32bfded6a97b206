"""Activations, contexts and directions against the plain model and the definition."""

import numpy as np
import pytest
import torch

from tasks.explanation.neuron_roles import activations, direct_logits, top_activating, top_tokens
from tasks.models.stack import DecoderStack
from tests.method.oracles import values_of
from tests.tiny import MIXTURES, UNGATED, rows, tiny_model, tiny_tokenizer

PROMPTS = [[5, 6, 7, 8, 1], [5, 6, 7, 9, 20, 30, 2, 2], [5, 44]]
NEURONS = [3, 30, 11]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", *UNGATED, *MIXTURES])
def test_activations_are_those_of_the_formula(family, layer):
    model = tiny_model(family)
    found = activations(DecoderStack(model), layer, PROMPTS, NEURONS)
    assert found.last.shape == (3, 48)
    for number, prompt in enumerate(PROMPTS):
        hidden = values_of(model, layer, prompt).numpy()
        np.testing.assert_allclose(found.last[number], hidden[-1], atol=1e-10)
        np.testing.assert_allclose(found.chosen[number], hidden[:, NEURONS], atol=1e-10)


def test_rows_of_down_proj_are_coordinates_of_what_it_gives():
    model = tiny_model("llama")
    stack = DecoderStack(model)
    whole = activations(stack, 1, PROMPTS, range(48)).chosen
    found = activations(stack, 1, PROMPTS, [4, 9], "down_proj")
    assert found.last.shape == (3, 32)
    for hidden, given in zip(whole, found.chosen, strict=True):
        np.testing.assert_allclose(given, hidden @ rows(model, 1, "down_proj")[[4, 9]].numpy().T, atol=1e-10)
    logits = direct_logits(stack, 1, [4], "down_proj")[0]
    expected = model.lm_head.weight[:, 4] * model.model.norm.weight[4]
    assert torch.equal(logits.argsort(), (expected - expected.mean()).argsort())


def test_the_direct_logits_are_what_the_column_does_to_them():
    model = tiny_model("llama")
    model.model.norm.weight.uniform_(0.5, 2)
    stack = DecoderStack(model)
    found = direct_logits(stack, 1, NEURONS)
    for logits, neuron in zip(found, NEURONS, strict=True):
        column = rows(model, 1, "down_proj")[:, neuron]
        unscaled = model.lm_head.weight @ (model.model.norm.weight * column)
        expected = (unscaled - unscaled.mean()) / column.square().mean().sqrt()
        torch.testing.assert_close(logits, expected, atol=1e-2, rtol=1e-3)  # but for the norm's epsilon
        words = top_tokens(tiny_tokenizer(), logits, 3)
        assert words["raised"][0]["logit"] == float(logits.max())
        assert words["lowered"][0]["logit"] == float(logits.min())


def test_what_a_norm_and_an_output_embedding_add_to_everything_is_no_direct_effect():
    """GPT-2's final norm has a bias and subtracts the mean."""
    model = tiny_model("gpt2")
    column = rows(model, 1, "down_proj")[:, 30]
    centred = column - column.mean()
    unscaled = model.lm_head.weight @ (model.transformer.ln_f.weight * centred)
    expected = (unscaled - unscaled.mean()) / centred.square().mean().sqrt()
    [found] = direct_logits(DecoderStack(model), 1, [30])
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-3)  # but for the norm's epsilon


def test_a_shared_prefix_is_one_context():
    prompts = [list(b"abXc"), list(b"abYd"), list(b"ab")]
    table = {"a": 1.0, "b": -9.0, "X": 3.0, "Y": 4.0, "c": 0.0, "d": 0.5}
    chosen = [np.array([[0.0, table[chr(i)]] for i in prompt]) for prompt in prompts]
    tokenizer = tiny_tokenizer()
    prompts = [tokenizer("".join(map(chr, prompt)))["input_ids"] for prompt in prompts]
    found = top_activating(tokenizer, prompts, chosen, 1, 4)
    assert [(one["before"], one["token"], one["after"], one["activation"]) for one in found] == [
        ("a", "b", "Xc", -9.0),
        ("ab", "Y", "d", 4.0),
        ("ab", "X", "c", 3.0),
        ("", "a", "bXc", 1.0),
    ]
    assert [(one["prompt"], one["position"]) for one in found] == [(0, 1), (1, 2), (0, 2), (0, 0)]
