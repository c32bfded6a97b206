"""Input attributions against Captum and against the margin they must add up to; the effect of pruning on that path."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from tasks.benchmarks.encoding import Encoded
from tasks.explanation.input_attribution import (
    Contrast,
    attribute_inputs,
    before_and_after,
    contrast,
    near_zero,
    shares,
    template_ends,
)
from tasks.method.silence import Neurons, silenced
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tests.method.oracles import gauss_legendre, riemann_right
from tests.tiny import rows, tiny_model, tiny_tokenizer

WANTED = Contrast([5, 6, 7, 9, 20, 30, 2, 2], (40, 9))
RULES = {"gausslegendre": gauss_legendre, "riemann_right": riemann_right}


def by_captum(model, wanted, method, steps, moved=range(8)):
    """IntegratedGradients on inputs_embeds, summed over the embedding's dimensions; `moved` begin at zero."""

    def margin(embeddings):
        logits = model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
        return logits[:, wanted.tokens[0]] - logits[:, wanted.tokens[1]]

    embeddings = model.get_input_embeddings()(torch.tensor([wanted.sequence]))
    nothing = embeddings.clone()
    nothing[:, list(moved)] = 0
    found = IntegratedGradients(margin).attribute(embeddings, nothing, n_steps=steps, method=method)
    return found.sum(-1)[0]


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_they_are_those_of_captum(family, method):
    model = tiny_model(family)
    found = attribute_inputs(model, WANTED, lambda f, one: RULES[method](f, one, 24))
    torch.testing.assert_close(found.scores, by_captum(model, WANTED, method, 24), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", RULES)
def test_tokens_that_stay_are_those_of_captums_baseline(method):
    model = tiny_model("llama")
    found = attribute_inputs(model, WANTED, lambda f, one: RULES[method](f, one, 24), range(2, 5))
    expected = by_captum(model, WANTED, method, 24, range(2, 5))
    torch.testing.assert_close(found.scores, expected, atol=1e-4, rtol=1e-4)
    assert found.scores[[0, 1, 5, 6, 7]].tolist() == [0] * 5


@pytest.mark.parametrize("method", RULES)
def test_they_are_those_of_captum_on_the_pruned_model(method):
    model = tiny_model("llama")
    stack, neurons = DecoderStack(model), [0, 7, 8, 40]
    with silenced(stack, Neurons(1, neurons)):
        found = attribute_inputs(model, WANTED, lambda f, one: RULES[method](f, one, 24))
    before = attribute_inputs(model, WANTED, lambda f, one: RULES[method](f, one, 24))
    rows(model, 1)[neurons] = 0
    torch.testing.assert_close(found.scores, by_captum(model, WANTED, method, 24), atol=1e-4, rtol=1e-4)
    assert (found.scores - before.scores).abs().max() > 1e-3, "the weights are back, and the base model is another one"


@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
def test_silenced_rows_are_zeroed_rows(projection):
    model = tiny_model("phi3")
    ids = torch.tensor([WANTED.sequence])
    with silenced(DecoderStack(model), Neurons(1, [3, 5], projection)):
        found = model(input_ids=ids).logits
    rows(model, 1, projection)[[3, 5]] = 0
    torch.testing.assert_close(found, model(input_ids=ids).logits)


def test_the_gap_is_what_is_left_of_the_margin():
    model = tiny_model("llama")
    found = attribute_inputs(model, WANTED)
    logits = model(input_ids=torch.tensor([WANTED.sequence])).logits[0, -1]
    nothing = model(inputs_embeds=torch.zeros(1, 8, 32, dtype=torch.float64)).logits[0, -1]
    margin = float((logits[40] - logits[9]) - (nothing[40] - nothing[9]))
    assert found.difference == pytest.approx(margin, abs=1e-9)
    assert float(found.scores.sum()) == pytest.approx(found.difference + found.gap, abs=1e-9)


def test_the_rule_near_zero_integrates_the_same_path():
    ends = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)

    def steep(alphas):  # rises at 0.001, as after a norm, and continues
        a = torch.tensor(alphas, dtype=torch.float64)[:, None]
        root = torch.sqrt(a**2 + 1e-6)
        return ((a / root + a**2) * ends).sum(1), (1e-6 / root**3 + 2 * a) * ends

    values, gradients = steep([1.0])
    found = near_zero(steep, (values[0], gradients[0]))
    torch.testing.assert_close(found.scores, values[0] * ends[0] / ends.sum(), atol=0.05, rtol=0.05)
    assert found.error <= 0.05 * found.difference
    assert abs(gauss_legendre(steep, (values[0], gradients[0]), 20).gap) > 10 * abs(found.gap)


def test_any_prompt_may_be_asked_about():
    loaded = Loaded(tiny_model("llama"), tiny_tokenizer())
    stack = DecoderStack(loaded.model)
    prompt, options = "an absolutely dreadful disaster :", [" Negative", " Positive", " Neutral"]
    found = before_and_after(loaded, stack, prompt, options, 1, range(0, 48, 2))
    answer, other = found.options
    assert answer == found.logprobs[0].argmax()
    assert other == found.logprobs[1].argmax() or found.logprobs[1].argmax() == answer
    assert other != answer
    shared = " " if {answer, other} != {0, 2} else " Ne"
    assert "".join(found.tokens) == prompt + shared
    assert len(found.before.scores) == len(found.after.scores) == len(found.tokens)
    unpruned = before_and_after(loaded, stack, prompt, options, 1, [])
    assert other == found.logprobs[1].argmax() or unpruned.options == found.options
    torch.testing.assert_close(unpruned.before.scores, unpruned.after.scores)


def test_options_are_compared_where_they_begin_to_differ():
    row = Encoded([1, 2], [[5, 6, 7], [5, 8], [9], [5, 6]])
    assert contrast(row, 0, 1) == Contrast([1, 2, 5], (6, 8))
    assert contrast(row, 2, 0) == Contrast([1, 2], (9, 5))
    with pytest.raises(InputError, match="no margin"):
        contrast(row, 0, 3)


def test_shares_add_up_to_one_in_size():
    assert shares(torch.tensor([3.0, -1.0, 0.0])).tolist() == [0.75, -0.25, 0]
    assert shares(torch.zeros(2)).tolist() == [0, 0]


def test_the_template_is_what_all_prompts_share():
    assert template_ends([[1, 2, 3, 9], [1, 2, 4, 5, 9]]) == (2, 1)
    assert template_ends([[1, 1], [1, 1, 1]]) == (2, 0)
    assert template_ends([[1, 2]]) == (0, 0)
    assert np.sum(template_ends([[1], [2]])) == 0
