"""Packed steering against explicit hooks on plain runs, one sequence at a time."""

import copy
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tasks.benchmarks.scoring import Answers, answers_unedited
from tasks.benchmarks.table import encode_rows
from tasks.comparison.caa import caa
from tasks.comparison.iti import iti
from tasks.comparison.sadi import sadi_head, sadi_hidden, sadi_neuron
from tasks.comparison.steering import (
    Steering,
    answers_steered,
    check_contrasts,
    head_outputs,
    last_prompt_tokens,
    layer_outputs,
    mean_difference,
    mlp_activations,
    mlp_outputs,
    option_activations,
    tokens_read,
)
from tasks.comparison.system import FitData
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tests.tiny import FAMILIES, SIZES, tiny_model, tiny_tokenizer

LAYERS, HEADS = SIZES["num_hidden_layers"], SIZES["num_attention_heads"]
# Two and three options of one and of several tokens, and a prompt that is the start of another one.
EXAMPLES = [
    ("a film :", [" y", " n"], 0),
    ("a fine film :", [" yes", " no !"], 1),
    ("a film", [" p", " q", " rs"], 2),
    ("dull . answer :", [" yes", " no !"], 0),
]


def rows(examples=EXAMPLES):
    names = [f"row-{number}" for number in range(len(examples))]
    prompts, options, gold = zip(*examples, strict=True)
    table = pd.DataFrame({"id": names, "prompt": prompts, "options": options, "gold": gold})
    return encode_rows(table, tiny_tokenizer(), 200)


def fit_data(family="llama", examples=EXAMPLES):
    model = tiny_model(family, torch.float32)
    return FitData(Loaded(model, tiny_tokenizer()), DecoderStack(model), rows(examples), rows(examples))


def module(model, site, layer):
    """(module, whether the site is its input)."""
    of_layer = model.model.layers[layer]
    return {
        "heads": (of_layer.self_attn.o_proj, True),
        "neurons": (getattr(of_layer.mlp, "act_fn", None) or getattr(of_layer.mlp, "activation_fn", None), False),
        "hidden": (of_layer.mlp, False),
        "layers": (of_layer, False),
    }[site]


SITES = {"heads": head_outputs, "neurons": mlp_activations, "hidden": mlp_outputs, "layers": layer_outputs}


@contextmanager
def hooked(model, site, edits):
    """Passes each layer's tensor at the site through its function, which may change it in place."""
    handles = []
    for layer, edit in edits.items():
        place, enters = module(model, site, layer)
        if enters:
            handles.append(place.register_forward_pre_hook(lambda _, inputs, edit=edit: (edit(inputs[0].clone()),)))
        else:
            handles.append(place.register_forward_hook(lambda _, __, output, edit=edit: edit(output.clone())))
    yield
    for handle in handles:
        handle.remove()


def plain_activation(model, site, ids):
    """The site's values at the last token of a plain run, [layers, width]."""
    kept = {}

    def keep(layer, x):
        kept[layer] = x[0, -1]
        return x

    with hooked(model, site, {layer: lambda x, layer=layer: keep(layer, x) for layer in range(LAYERS)}):
        model(torch.tensor([ids]), use_cache=False)
    return torch.stack([kept[layer] for layer in range(LAYERS)])


def plain_differences(model, site, examples):
    """Mean over the rows of the right option's values minus the mean of the wrong options' values, [layers, width]."""
    total = 0
    for row, gold in zip(examples.encoded, examples.gold, strict=True):
        values = [plain_activation(model, site, [*row.prompt, *option]) for option in row.options]
        others = [value for number, value in enumerate(values) if number != gold]
        total = total + values[gold] - sum(others) / len(others)
    return total / len(examples.encoded)


def plain_answers(model, site, edits, encoded, *, prompt_only):
    """Log-probabilities of each option by a run of its own; `edits`: layer -> function of values [n, width]."""
    answers = []
    for row in encoded:
        sums = []
        for option in row.options:
            ids, last = [*row.prompt, *option], len(row.prompt) - 1
            at = slice(last, last + 1 if prompt_only else len(ids))

            def change(x, edit, at=at):
                x[0, at] = edit(x[0, at])
                return x

            with hooked(model, site, {n: lambda x, f=f, change=change: change(x, f) for n, f in edits.items()}):
                logprobs = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
            sums.append(sum(float(logprobs[last + i, token]) for i, token in enumerate(option)))
        answers.append(np.array(sums))
    return answers


def assert_answers(answers, expected):
    for found, values in zip(answers.logprobs, expected, strict=True):
        np.testing.assert_allclose(found[0], values, atol=1e-4, rtol=1e-5)


def rank(logprobs, gold):
    """The criterion for the best setting: accuracy, then mean margin."""
    margins = [values[g] - np.delete(values, g).max() for values, g in zip(logprobs, gold, strict=True)]
    return np.mean([values.argmax() == g for values, g in zip(logprobs, gold, strict=True)]), np.mean(margins)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_those_of_plain_runs(family, site):
    """In float64: float32 has errors relative to a layer's largest value, even if a value is near 0."""
    given = fit_data(family)
    found = option_activations(given.stack, SITES[site](given.stack), given.examples.encoded)
    exact = copy.deepcopy(given.loaded.model).double()
    for row, values in zip(given.examples.encoded, found, strict=True):
        for option, value in zip(row.options, values, strict=True):
            expected = plain_activation(exact, site, [*row.prompt, *option])
            largest = expected.abs().amax(dim=1, keepdim=True)
            torch.testing.assert_close(value / largest, expected / largest, atol=3e-5, rtol=0)


def test_mean_differences_are_those_of_plain_runs():
    given = fit_data()
    found = option_activations(given.stack, layer_outputs(given.stack), given.examples.encoded)
    expected = plain_differences(given.loaded.model, "layers", given.examples)
    torch.testing.assert_close(mean_difference(found, given.examples.gold), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt_only", [True, False])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_every_site_is_steered_as_in_plain_runs(family, site, prompt_only):
    given = fit_data(family)
    nodes = last_prompt_tokens if prompt_only else tokens_read
    encoded = given.examples.encoded
    # Different factors for the dimensions: a norm after the site would undo a common one.
    edits = {
        layer: lambda x, layer=layer: x * torch.linspace(-1, 2, x.shape[1]) + 0.1 * layer for layer in range(LAYERS)
    }
    answers = answers_steered(given.stack, Steering(SITES[site](given.stack), edits, nodes), encoded)
    assert_answers(answers, plain_answers(given.loaded.model, site, edits, encoded, prompt_only=prompt_only))
    for found, unedited in zip(answers.logprobs, answers_unedited(given.stack, encoded).logprobs, strict=True):
        assert not np.allclose(found, unedited)


def test_rows_of_several_packs_keep_their_order():
    texts = np.random.default_rng(0).integers(33, 120, size=(14, 60))
    examples = [("".join(map(chr, text)), [" yes", " no !"], 0) for text in texts]
    examples += [(examples[3][0][:40], [" a", " b"], 1), (examples[3][0], [" c", " d"], 1)]
    given = fit_data(examples=examples)
    edits = {1: lambda x: 2 * x}
    answers = answers_steered(
        given.stack, Steering(mlp_outputs(given.stack), edits, last_prompt_tokens), given.examples.encoded
    )
    assert_answers(
        answers, plain_answers(given.loaded.model, "hidden", edits, given.examples.encoded, prompt_only=True)
    )


def test_no_edit_is_bit_identical_to_the_base():
    examples = [example for example in EXAMPLES if example[0] != "a film"]  # all in one pack
    given = fit_data(examples=examples)
    steering = Steering(layer_outputs(given.stack), {0: lambda x: x, LAYERS - 1: lambda x: x}, tokens_read)
    answers = answers_steered(given.stack, steering, given.examples.encoded)
    assert fingerprint(answers) == fingerprint(answers_unedited(given.stack, given.examples.encoded))


def fingerprint(answers: Answers):
    return [values.tobytes() for values in (*answers.logprobs, *answers.greedy)]


def assert_no_hooks(model):
    for place in model.modules():
        assert not place._forward_hooks
        assert not place._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [iti, caa, sadi_head, sadi_neuron, sadi_hidden])
def test_the_model_is_as_it_was(system, family, monkeypatch):
    for grid in ("caa.MULTIPLIERS", "iti.STRENGTHS", "sadi.STRENGTHS", "sadi.NEURON_STRENGTHS"):
        monkeypatch.setattr(f"tasks.comparison.{grid}", (5,))
    given = fit_data(family)
    model, encoded = given.loaded.model, given.examples.encoded
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    implementation = model.config._attn_implementation
    base = fingerprint(answers_unedited(given.stack, encoded))

    def as_before():
        assert model.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert_no_hooks(model)
        assert model.config._attn_implementation == implementation
        assert fingerprint(answers_unedited(given.stack, encoded)) == base

    fitted = system(given)
    as_before()
    assert (fitted.examples, fitted.labels) == (len(encoded), len(encoded))
    with fitted.applied() as answer:
        steered = fingerprint(answer(encoded))
        assert fingerprint(answer(encoded)) == steered
        assert [len(answer(encoded[:2]).logprobs), len(answer(encoded[2:]).logprobs)] == [2, 2]
    as_before()
    assert steered != base
    with pytest.raises(KeyboardInterrupt), fitted.applied() as answer:
        raise KeyboardInterrupt
    as_before()


def test_hooks_are_gone_after_a_run_that_fails():
    given = fit_data()

    def fails(_):
        raise RuntimeError("here")

    steering = Steering(layer_outputs(given.stack), {1: fails}, tokens_read)
    with pytest.raises(RuntimeError, match="here"):
        answers_steered(given.stack, steering, given.examples.encoded)
    assert_no_hooks(given.loaded.model)


def test_a_row_without_a_wrong_option_is_refused():
    with pytest.raises(InputError, match="row row-1: options"):
        check_contrasts(rows([EXAMPLES[0], ("a film", [" good"], 0)]))


def test_an_activation_function_that_hooks_cannot_reach_is_refused():
    given = fit_data()
    shared = nn.SiLU()
    for layer in given.loaded.model.model.layers:
        layer.mlp.act_fn = shared
    with pytest.raises(InputError, match="act_fn"):
        sadi_neuron(FitData(given.loaded, DecoderStack(given.loaded.model), given.examples, given.selection_rows))


@pytest.mark.parametrize("system", [iti, sadi_head])
def test_attention_without_o_proj_is_refused(system):
    given = fit_data()
    for layer in given.loaded.model.model.layers:
        layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj)
    with pytest.raises(InputError, match="o_proj"):
        system(given)
