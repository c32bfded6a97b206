"""Every method, path and target of the common interface, each against an independent computation."""

from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.method.attribute import Attributor, assemble, attributor_on, describe
from tasks.method.options import Attribution
from tasks.method.shapley import kept_neurons
from tasks.method.targets import TARGETS
from tasks.models.memory import Room
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tasks.runtime.journal import Journal
from tasks.runtime.work import run_parts, worker_pool
from tests.method.oracles import (
    CASES,
    FAMILIES,
    FIRSTS,
    PROMPTS,
    by_weights,
    fixed_targets,
    logits,
    mean_target,
    parts_of_hidden,
    row_gradients,
    weight,
    zeroed,
)
from tests.tiny import SIZES, UNGATED, gated, linear, tiny_model, tiny_tokenizer


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny_model(request.param)


def attributor(model, firsts=FIRSTS, prompts=PROMPTS, **settings):
    return Attributor(DecoderStack(model), prompts, Attribution(**settings), firsts)


def all_scores(model, **settings):
    found = attributor(model, **settings)
    return torch.cat([found.attribute(part).scores for part in found.parts])


@pytest.mark.parametrize(("model", "projection"), CASES, indirect=["model"])
@pytest.mark.parametrize("layer", [1, 2])
def test_single_is_what_zeroing_one_row_of_the_weights_takes_away(model, layer, projection):
    result = attributor(model, path="single", projection=projection).attribute((layer,))
    targets = fixed_targets(model)
    full = mean_target(model, targets)
    expected = []
    for row in range(result.scores.shape[1]):
        with zeroed(model, [layer], projection, row):
            expected.append(full - mean_target(model, targets))
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(result.scores[0], expected, atol=1e-9, rtol=0)
    assert expected.abs().max() > 1e-2


def test_single_in_small_batches_is_the_same(monkeypatch):
    model = tiny_model("llama")
    expected = all_scores(model, path="single")
    monkeypatch.setattr(Room, "forward_tokens", property(lambda room: 30))
    torch.testing.assert_close(all_scores(model, path="single"), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("model", "projection"), [c for c in CASES if c[1] != "up_proj"], indirect=["model"])
def test_activation_is_what_the_weights_make_of_the_mlps_input(model, projection):
    expected = torch.zeros(3, 32 if projection == "down_proj" else 48, dtype=torch.float64)
    for prompt in PROMPTS:
        for layer in range(3):
            act, g, u = parts_of_hidden(model, layer, prompt)
            values = act(g) * u
            if projection == "down_proj":
                values = by_weights(model, layer, "down_proj", values)
            expected[layer] += values.abs().mean(0) / len(PROMPTS)
    found = all_scores(model, method="activation", projection=projection)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    if projection == "gate_proj" and gated(model):
        assert torch.equal(found, all_scores(model, method="activation", projection="up_proj"))


@pytest.mark.parametrize(("model", "projection"), CASES, indirect=["model"])
def test_gradient_x_activation_is_the_rows_output_times_its_gradient(model, projection):
    found = all_scores(model, method="gradient_x_activation", projection=projection)
    for layer in range(3):
        runs = [row_gradients(model, [layer], projection, 1.0, prompt)[0] for prompt in PROMPTS]
        expected = sum((rows * gradient).sum(0) for rows, gradient in runs) / len(PROMPTS)
        torch.testing.assert_close(found[layer], expected, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize(("model", "projection"), CASES, indirect=["model"])
@pytest.mark.parametrize("path", ["layer", "all_layers"])
def test_relu_gradient_is_the_mean_of_positive_parts_by_step_and_position(model, path, projection):
    found = all_scores(model, method="relu_gradient", path=path, projection=projection, steps=4)
    expected = torch.zeros_like(found)
    for together in [[0, 1, 2]] if path == "all_layers" else [[0], [1], [2]]:
        for prompt in PROMPTS:
            for k in (1, 2, 3, 4):
                runs = row_gradients(model, together, projection, k / 4, prompt)
                for layer, (_, gradient) in zip(together, runs, strict=True):
                    for position in gradient:
                        expected[layer] += position.clamp(min=0) / (4 * len(PROMPTS))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-8)
    assert expected.max() > 1e-2


@pytest.mark.parametrize(("model", "projection"), CASES, indirect=["model"])
def test_saliency_is_the_sum_over_positions_of_the_gradients_size(model, projection):
    found = all_scores(model, method="saliency", projection=projection)
    for layer in range(3):
        gradients = [row_gradients(model, [layer], projection, 1.0, prompt)[0][1] for prompt in PROMPTS]
        expected = sum(gradient.abs().sum(0) for gradient in gradients) / len(PROMPTS)
        torch.testing.assert_close(found[layer], expected, atol=1e-9, rtol=1e-8)


def hidden_gradients(model, layer, factor, prompt):
    """h of a layer and dF/dh, [positions, d_ff] each, with h times a factor, [d_ff] or a number."""
    found = []

    def replace(module, inputs):
        found.extend([inputs[0].flatten(0, -2), (inputs[0] * factor).detach().requires_grad_(True)])
        return (found[1],)

    target = fixed_targets(model)[PROMPTS.index(prompt)]
    handle = linear(model, layer, "down_proj").register_forward_pre_hook(replace)
    value = target(logits(model, prompt))
    handle.remove()
    return found[0], torch.autograd.grad(value, found[1])[0].flatten(0, -2)


# A norm after the MLP (Gemma) makes the integral vanish.
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "opt", "gpt2"])
def test_deeplift_is_the_rescale_rule_in_the_mlp_and_complete(family):
    """Multipliers of the rule, act(g) / g and u, times the integral of dF/dh from 0 to h."""
    model = tiny_model(family)
    settings = {"method": "deeplift", "tolerance": 1e-4, "stability": 0.0, "max_nodes": 512}
    result = attributor(model, **settings).attribute((1,))
    expected = torch.zeros(48, dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(48)
    for prompt in PROMPTS:
        act, g, u = parts_of_hidden(model, 1, prompt)
        of_h = sum(
            w / 2 * hidden_gradients(model, 1, (x + 1) / 2, prompt)[1] for x, w in zip(nodes, weights, strict=True)
        )
        of_g = of_h * u * (act(g) / g)
        expected += (g * of_g).sum(0) / len(PROMPTS)
    torch.testing.assert_close(result.scores[0], expected, atol=2e-3, rtol=2e-3)
    full = mean_target(model, fixed_targets(model))
    targets = fixed_targets(model)
    with zeroed(model, [1], "gate_proj"):
        difference = full - mean_target(model, targets)
    assert result.difference == pytest.approx(difference, abs=1e-9)
    assert float(result.scores.sum()) == pytest.approx(difference, abs=1e-4 * max(1, abs(difference)))
    gates = attributor(model, **settings | {"method": "integrated_gradients"}).attribute((1,))
    difference = float((gates.scores - result.scores).abs().max())
    if family == "opt":  # ReLU(alpha g) = alpha ReLU(g): both paths are one
        assert difference < 1e-4
    else:
        assert difference > 5e-3


@pytest.mark.parametrize(("model", "projection"), [c for c in CASES if c[1] != "down_proj"], indirect=["model"])
def test_shapley_is_the_mean_gradient_by_the_factors_at_its_samples(model, projection):
    found = attributor(model, method="shapley", projection=projection, steps=5).attribute((1,))
    expected = torch.zeros(48, dtype=torch.float64)
    for prompt in PROMPTS:
        for kept in torch.from_numpy(kept_neurons(48, 5, 1)):
            h, gradient = hidden_gradients(model, 1, kept, prompt)
            expected += (h * gradient).sum(0) / (5 * len(PROMPTS))
    torch.testing.assert_close(found.scores[0], expected, atol=1e-9, rtol=1e-8)
    targets = fixed_targets(model)
    full = mean_target(model, targets)
    with zeroed(model, [1], projection):
        assert found.difference == pytest.approx(full - mean_target(model, targets), abs=1e-9)
    assert found.gap == pytest.approx(float(found.scores.sum()) - found.difference, abs=1e-12)


def test_shapley_in_small_batches_is_the_same(monkeypatch):
    model = tiny_model("llama")
    expected = all_scores(model, method="shapley", steps=6)
    monkeypatch.setattr(Room, "backward_tokens", property(lambda room: 20))
    torch.testing.assert_close(all_scores(model, method="shapley", steps=6), expected, atol=1e-12, rtol=0)


def enumerated(model, layer, neurons):
    """Shapley values by their definition: over all coalitions, each with its rows of the weights set to zero."""
    targets = fixed_targets(model)
    values = {}
    for size in range(neurons + 1):
        for kept in combinations(range(neurons), size):
            gone = [j for j in range(neurons) if j not in kept]
            with zeroed(model, [layer], "gate_proj", gone):
                values[kept] = mean_target(model, targets)
    found = torch.zeros(neurons, dtype=torch.float64)
    for kept, value in values.items():
        for j in set(range(neurons)) - set(kept):
            weight = factorial(len(kept)) * factorial(neurons - len(kept) - 1) / factorial(neurons)
            found[j] += weight * (values[tuple(sorted((*kept, j)))] - value)
    return found


@pytest.mark.parametrize(("size", "samples", "bound"), [(0.02, 2, 0.02), (0.02, 7, 0.2), (0.3, 400, 0.15)])
def test_shapley_of_eight_neurons_against_all_coalitions(monkeypatch, size, samples, bound):
    """As exact as F is quadratic: with one pair where the layer is small, with many samples where it is not.

    The bound is on the largest error, as a part of what the gradient at the full model is off.
    """
    monkeypatch.setitem(SIZES, "intermediate_size", 8)
    model = tiny_model("llama")
    weight(model, 1, "down_proj").mul_(size)
    expected = enumerated(model, 1, 8)
    found = attributor(model, method="shapley", steps=samples).attribute((1,))
    local = attributor(model, method="gradient_x_activation", projection="up_proj").attribute((1,))
    assert float(expected.sum()) == pytest.approx(found.difference, abs=1e-9)
    error = float((found.scores[0] - expected).abs().max())
    assert error < bound * float((local.scores[0] - expected).abs().max())


@pytest.mark.parametrize("samples", [1, 6, 7])
def test_the_samples_come_in_pairs_and_cover_the_path(samples):
    kept = kept_neurons(20_000, samples, 3)
    assert kept.shape == (samples, 20_000)
    assert set(np.unique(kept)) <= {0.0, 1.0}
    np.testing.assert_allclose(kept.mean(1), (np.arange(samples) + 0.5) / samples, atol=0.02)
    for k in range(samples // 2):
        assert (kept[k] + kept[samples - 1 - k] == 1).all()
    assert not np.array_equal(kept, kept_neurons(20_000, samples, 4))


def target_oracle(name, full, firsts):
    """F of one prompt as a function of its logits, `full` being those of the full model."""
    ranked = sorted(set(firsts), key=lambda token: float(full[token]), reverse=True)
    return {
        "max_logit": lambda logits: logits[full.argmax()],
        "max_logit_remaximised": lambda logits: logits.max(),
        "max_option_logit": lambda logits: logits[ranked[0]],
        "option_margin": lambda logits: logits[ranked[0]] - logits[ranked[1]],
    }[name]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("path", ["layer", "all_layers", "single"])
def test_targets(model, name, path):
    targets = [target_oracle(name, logits(model, p), f) for p, f in zip(PROMPTS, FIRSTS, strict=True)]
    full = mean_target(model, targets)
    if path == "single":
        result = attributor(model, path=path, target=name).attribute((1,))
        with zeroed(model, [1], "gate_proj", 5):
            assert float(result.scores[0, 5]) == pytest.approx(full - mean_target(model, targets), abs=1e-9)
        return
    layers = (0, 1, 2) if path == "all_layers" else (1,)
    result = attributor(model, path=path, target=name, max_nodes=4).attribute(layers)
    with zeroed(model, layers, "gate_proj"):
        assert result.difference == pytest.approx(full - mean_target(model, targets), abs=1e-9)


def test_a_remaximised_target_switches_tokens_and_stays_complete():
    """Against max(1) - max(0); the tokens at the two ends differ."""
    model = tiny_model("llama")
    settings = {"tolerance": 1e-3, "max_nodes": 2048}
    result = attributor(model, target="max_logit_remaximised", **settings).attribute((1,))
    full = [logits(model, prompt) for prompt in PROMPTS]
    with zeroed(model, [1], "gate_proj"):
        without = [logits(model, prompt) for prompt in PROMPTS]
    assert any(a.argmax() != b.argmax() for a, b in zip(full, without, strict=True))
    difference = sum(float(a.max() - b.max()) for a, b in zip(full, without, strict=True)) / len(PROMPTS)
    assert float(result.scores.sum()) == pytest.approx(difference, abs=1e-3 * max(1, abs(difference)))
    assert abs(result.difference - attributor(model, **settings).attribute((1,)).difference) > 1e-2


def test_a_remaximised_gradient_is_that_of_the_token_ahead():
    model = tiny_model("llama")
    path = attributor(model, target="max_logit_remaximised", prompts=PROMPTS[:1]).path
    fixed = attributor(model, prompts=PROMPTS[:1]).path
    gate = model.model.layers[1].mlp.gate_proj
    factor = torch.full((48,), 0.1, dtype=torch.float64, requires_grad=True)
    handle = gate.register_forward_hook(lambda _, __, output: output * factor)
    values = logits(model, PROMPTS[0])
    handle.remove()
    expected = torch.autograd.grad(values[values.argmax()], factor)[0]
    torch.testing.assert_close(path.evaluate(1, [0.1])[1][0], expected, atol=1e-10, rtol=1e-9)
    assert (fixed.evaluate(1, [0.1])[1][0] - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", UNGATED)
def test_up_proj_is_refused_where_there_is_no_gate(family):
    with pytest.raises(
        InputError, match=r"^projection: the model has no up_proj: its MLPs have no gate; use gate_proj"
    ):
        attributor(tiny_model(family), projection="up_proj")


def test_options_that_begin_alike_have_no_margin():
    with pytest.raises(InputError, match="all options of a row begin with the same token"):
        attributor(tiny_model("llama"), [[3, 3], [1, 2], [1, 2]], target="option_margin").attribute((0,))
    attributor(tiny_model("llama"), [[3, 3], [1, 2], [1, 2]], target="max_option_logit", max_nodes=4).attribute((0,))


@pytest.mark.parametrize("target", ["max_logit", "option_margin"])
def test_a_table_says_whether_its_rows_are_asked_through_a_chat_template(target):
    """The prompts are those of the template, and end where the options begin."""
    stack, tokenizer = DecoderStack(tiny_model("llama")), tiny_tokenizer()
    tokenizer.chat_template = "{{ date_string }}|{{ messages[0].content }}|"
    table = pd.DataFrame({"prompt": ["Is it? ", "Or not? "], "options": [np.array(["no", "yes"])] * 2})
    for plain, chat in ((True, {}), (False, {"chat": ["2025-02-03"] * 2})):
        found = attributor_on(stack, tokenizer, table.assign(**chat), Attribution(target=target))
        texts = tokenizer.batch_decode(found._sequences)
        if plain:
            assert [text.rstrip() for text in texts] == ["Is it?", "Or not?"]
        else:
            assert [text.split("|")[1].rstrip() for text in texts] == ["Is it?", "Or not?"]
            assert all(text.startswith("03 Feb 2025|") for text in texts)
        if target == "option_margin":
            assert [tokenizer.batch_decode([[t] for t in row]) for row in found._firsts] == [["n", "y"]] * 2


@pytest.mark.parametrize(
    ("prompt", "options", "firsts"),
    [("Is it good?\nAnswer:\n", ["yes", "no"], "yn"), ("Answer:", [" yes", " no"], "  ")],
)
def test_a_target_on_options_reads_their_first_tokens(prompt, options, firsts):
    tokenizer = tiny_tokenizer()
    table = pd.DataFrame({"prompt": [prompt], "options": [options]})
    found = attributor_on(DecoderStack(tiny_model("llama")), tokenizer, table, Attribution(target="max_option_logit"))
    assert tokenizer.batch_decode(found._sequences) == [prompt]  # the white space is given, not predicted
    assert tokenizer.batch_decode(found._firsts) == [firsts]


METHODS = [
    {},
    {"path": "all_layers", "projection": "down_proj", "max_nodes": 8},
    {"path": "single"},
    {"method": "gradient_x_activation", "target": "option_margin"},
    {"method": "activation"},
    {"method": "relu_gradient", "steps": 3},
    {"method": "saliency"},
    {"method": "shapley", "steps": 3},
    {"method": "deeplift"},
]


@pytest.mark.parametrize("settings", METHODS)
def test_parts_come_back_from_the_journal_as_they_went(settings, tmp_path):
    model = tiny_model("llama")
    found = []
    for _ in range(2):
        made = []
        with worker_pool(lambda made=made: made.append(attributor(model, **settings)) or made[0]) as workers:
            parts = workers.attribute("parts")
            values = run_parts(workers, parts, Journal(tmp_path / "journal", "key"), lambda done: None)
        found.append(assemble(list(values.values()), {}))
    assert set(vars(made[0])) == {"_stack", "_sequences", "_settings", "_firsts"}, "computed what the journal has"
    assert [layer for part in parts for layer in part] == [0, 1, 2]
    scores, again = found
    assert scores.to_bytes() == again.to_bytes()
    assert scores.values.shape == (3, 32 if "projection" in settings else 48)
    assert scores.values.dtype == np.float32
    assert scores.gap.shape == (1 if settings.get("path") == "all_layers" else 3,)
    integral = (
        settings.get("method") not in ("activation", "relu_gradient", "saliency") and settings.get("path") != "single"
    )
    assert bool(np.isnan(scores.gap).any()) == (not integral)


def test_all_layers_close_one_gap_together():
    found = attributor(tiny_model("llama"), path="all_layers", quadrature="riemann_right", steps=5)
    [part] = found.parts
    result = found.attribute(part)
    assert result.scores.shape == (3, 48)
    assert float(result.scores.sum()) - result.difference == pytest.approx(result.gap, abs=1e-12)


def test_a_model_of_one_layer_has_the_same_scores_on_both_paths():
    model = tiny_model("llama")
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    one, every = (all_scores(model, path=path, max_nodes=16) for path in ("layer", "all_layers"))
    torch.testing.assert_close(one, every, atol=1e-10, rtol=0)


def test_the_header_says_what_the_scores_depend_on():
    common = {"projection": "gate_proj", "ranking": "signed"}
    assert describe(Attribution()) == common | {
        "method": "integrated_gradients",
        "path": "layer",
        "target": "max_logit",
        "definition": TARGETS["max_logit"],
        "quadrature": "adaptive",
        "tolerance": 0.01,
        "stability": 0.99,
        "max_nodes": 32,
    }
    assert describe(Attribution(method="activation")) == common | {"method": "activation"}
    single = describe(Attribution(path="single", target="option_margin"))
    assert {*single} == {*common, "method", "path", "target", "definition"}
    assert describe(Attribution(method="relu_gradient"))["steps"] == 20
    assert describe(Attribution(method="shapley")) == common | {
        "method": "shapley", "target": "max_logit", "definition": TARGETS["max_logit"], "steps": 20
    }  # fmt: skip
    assert {*describe(Attribution(method="saliency"))} == {*common, "method", "target", "definition"}
    assert {*describe(Attribution())} - {*describe(Attribution(method="deeplift"))} == {"path"}
    riemann = describe(Attribution(quadrature="riemann_right"))
    assert "steps" in riemann
    assert "tolerance" not in riemann


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"path": "single", "method": "relu_gradient"}, "path: single is an exact integral"),
        ({"path": "single", "method": "activation"}, "path: single is an exact integral"),
        ({"path": "all_layers", "method": "activation"}, "path: activation uses the full model only"),
        ({"path": "all_layers", "method": "gradient_x_activation"}, "path: gradient_x_activation uses the full"),
        ({"path": "all_layers", "method": "saliency"}, "path: saliency uses the full model only"),
        ({"path": "all_layers", "method": "shapley"}, "path: shapley scores the neurons of one layer"),
        ({"path": "single", "method": "deeplift"}, "path: single is an exact integral"),
        ({"projection": "up_proj", "method": "deeplift"}, "projection: deeplift differs from integrated_gradients"),
        ({"method": "activation", "target": "option_margin"}, "target: activation does not use the output"),
        ({"projection": "q_proj"}, "projection"),
        ({"ranking": "random"}, "ranking"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        Attribution(**settings)
