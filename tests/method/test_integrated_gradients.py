"""Integrated gradients against two independent computations: Captum over row factors, autograd on the weights."""

import pytest
import torch
from captum.attr import IntegratedGradients

from tasks.method.integrated_gradients import LayerPath, layer_scores
from tasks.method.options import Attribution
from tasks.method.quadrature import allowed
from tasks.models.stack import DecoderStack
from tasks.models.sweep import logits_without
from tasks.runtime.errors import InputError
from tests.method.oracles import (
    CASES,
    FAMILIES,
    PROJECTIONS,
    PROMPTS,
    fixed_targets,
    gauss_legendre,
    logits,
    mean_target,
    weight,
    weight_scores,
    zeroed,
)
from tests.tiny import gated, linear, tiny_model


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny_model(request.param)


def scores(stack, layer, *, max_tokens=20, projection="gate_proj", **settings):
    path = LayerPath(stack, PROMPTS, projection=projection, max_tokens=max_tokens)
    return layer_scores(path, layer, path.at_one(), Attribution(**settings))


def gauss(stack, layer, nodes, projection="gate_proj"):
    path = LayerPath(stack, PROMPTS, projection=projection)
    value, gradients = path.at_one()

    def evaluate(alphas):
        values, gradients = path.evaluate(layer, alphas)
        return values, gradients.flatten(1)

    one = gradients.flatten() if layer is None else gradients[layer]
    return gauss_legendre(evaluate, (value, one), nodes)


def captum_scores(model, layer, prompt, steps):
    """Riemann-right IG of the target logit over a factor on each gate pre-activation, by Captum on the whole model."""
    gate = linear(model, layer)
    token = int(logits(model, prompt).argmax())

    def forward(scale):  # [m, d_ff] -> [m]
        def scaled(_, __, output):
            return (output.reshape(len(scale), -1, 48) * scale[:, None]).reshape(output.shape)

        handle = gate.register_forward_hook(scaled)
        try:
            ids = torch.tensor([prompt]).expand(len(scale), -1)
            return model(ids, use_cache=False).logits[:, -1, token]
        finally:
            handle.remove()

    one = torch.ones(1, 48, dtype=torch.float64)
    return IntegratedGradients(forward).attribute(one, one * 0, n_steps=steps, method="riemann_right")[0]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_equals_captum_over_a_row_scale_vector(model, layer):
    result = scores(DecoderStack(model), layer, quadrature="riemann_right", steps=20)
    expected = torch.stack([captum_scores(model, layer, prompt, 20) for prompt in PROMPTS]).mean(0)
    torch.testing.assert_close(result.scores, expected, atol=1e-6, rtol=0)
    assert expected.abs().max() > 1e-2


@pytest.mark.parametrize(("model", "projection"), CASES, indirect=["model"])
@pytest.mark.parametrize("layer", [0, 2])
def test_equals_integrated_gradients_of_the_weights(model, layer, projection):
    result = gauss(DecoderStack(model), layer, 6, projection)
    expected = weight_scores(model, [layer], projection, 6)[0]
    torch.testing.assert_close(result.scores, expected, atol=1e-10, rtol=1e-9)
    assert expected.abs().max() > 1e-2


@pytest.mark.parametrize(("model", "projection"), CASES, indirect=["model"])
def test_all_layers_equals_integrated_gradients_of_all_weights(model, projection):
    stack = DecoderStack(model)
    result = gauss(stack, None, 6, projection)
    expected = weight_scores(model, range(3), projection, 6)
    torch.testing.assert_close(result.scores.reshape(3, -1), expected, atol=1e-10, rtol=1e-9)
    one_by_one = torch.stack([gauss(stack, layer, 6, projection).scores for layer in range(3)])
    # Before a norm after the MLP (Gemma), scaling rows of up or down changes nothing except for the norm's epsilon.
    scaleless = model.config.model_type == "gemma3_text" and projection != "gate_proj"
    assert ((expected - one_by_one).abs().max() > 1e-2) == (not scaleless)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("layer", [0, 1, 2, None])
def test_scores_add_up_to_the_difference(layer, projection):
    model = tiny_model("llama")
    targets = fixed_targets(model)
    result = scores(DecoderStack(model), layer, projection=projection, tolerance=1e-4, max_nodes=2048)
    with zeroed(model, range(3) if layer is None else [layer], projection):
        without = mean_target(model, targets)
    difference = mean_target(model, targets) - without
    assert result.difference == pytest.approx(difference, abs=1e-9)
    assert float(result.scores.sum()) == pytest.approx(difference, abs=allowed(difference, 1e-4))
    assert result.error <= allowed(difference, 1e-4)


def test_scores_add_up_in_every_family(model):
    targets = fixed_targets(model)
    result = scores(DecoderStack(model), 1, tolerance=1e-3, max_nodes=512)
    with zeroed(model, [1], "gate_proj"):
        without = mean_target(model, targets)
    difference = mean_target(model, targets) - without
    assert float(result.scores.sum()) == pytest.approx(difference, abs=allowed(difference, 1e-3))


@pytest.mark.parametrize("layer", [0, 2])
def test_a_row_of_gate_a_row_of_up_and_a_column_of_down_are_one_neuron(model, layer):
    """Without a gate, a row of the first linear layer and a column of the last one."""
    rows = [3, 7, 40]
    found = []
    for projection, at in [("gate_proj", rows), ("up_proj", rows), ("down_proj", (slice(None), rows))]:
        if projection == "up_proj" and not gated(model):
            found.append(found[0])
            continue
        with zeroed(model, [layer], projection, at):
            found.append(torch.stack([logits(model, prompt) for prompt in PROMPTS]))
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], atol=1e-12, rtol=0)
    stack = DecoderStack(model)
    [packed] = stack.pack([[(prompt, [len(prompt) - 1])] for prompt in PROMPTS])
    order = torch.tensor([packed.read_of[unit, 0, len(PROMPTS[unit]) - 1] for unit in range(3)])
    for projection in ("gate_proj", "up_proj"):
        [edited] = logits_without(stack, stack.clean(packed), layer, [torch.tensor(rows).numpy()], projection)
        torch.testing.assert_close(edited[0, order], found[0], atol=1e-10, rtol=0)
    with zeroed(model, [layer], "down_proj", [3, 7]):
        expected = torch.stack([logits(model, prompt) for prompt in PROMPTS])
    [edited] = logits_without(stack, stack.clean(packed), layer, [torch.tensor([3, 7]).numpy()], "down_proj")
    torch.testing.assert_close(edited[0, order], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("layer", [0, 1])
def test_rows_of_up_have_the_scores_of_the_neurons_values(model, layer):
    """h is linear in u, so that the path of up's rows is that of h (and of down's columns)."""
    expected = torch.zeros(48, dtype=torch.float64)
    down = linear(model, layer, "down_proj")
    alphas, shares = zip(*[(0.1, 0.3), (0.5, 0.4), (0.8, 0.3)], strict=True)
    for prompt, target in zip(PROMPTS, fixed_targets(model), strict=True):
        for alpha, share in zip(alphas, shares, strict=True):
            factor = torch.full((48,), alpha, dtype=torch.float64, requires_grad=True)
            handle = down.register_forward_pre_hook(lambda _, inputs, factor=factor: (inputs[0] * factor,))
            expected += share * torch.autograd.grad(target(logits(model, prompt)), factor)[0] / 3
            handle.remove()
    _, gradients = LayerPath(DecoderStack(model), PROMPTS, projection="up_proj").evaluate(layer, alphas)
    torch.testing.assert_close(torch.tensor(shares, dtype=torch.float64) @ gradients, expected, atol=1e-11, rtol=1e-9)


def test_the_projections_share_a_sum():
    """Gate, up and down rows of a layer, all scaled to zero, give the same model: the one without that MLP."""
    model = tiny_model("llama")
    stack = DecoderStack(model)
    differences = [scores(stack, 1, projection=projection, max_nodes=4).difference for projection in PROJECTIONS]
    assert differences == pytest.approx([differences[0]] * 3, abs=1e-10)


def test_the_adaptive_rule_reaches_what_64_nodes_give():
    stack = DecoderStack(tiny_model("llama"))
    adaptive = scores(stack, 0, tolerance=1e-6, max_nodes=1024)
    torch.testing.assert_close(adaptive.scores, gauss(stack, 0, 64).scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [1, None])
def test_memory_limit_does_not_change_the_scores(layer):
    stack = DecoderStack(tiny_model("llama"))
    settings = {"quadrature": "riemann_right", "steps": 7}
    first, second = (scores(stack, layer, max_tokens=size, **settings) for size in (3, 4096))
    torch.testing.assert_close(first.scores, second.scores, atol=1e-12, rtol=0)


def test_a_spent_node_budget_is_reported():
    result = scores(DecoderStack(tiny_model("llama")), 0, tolerance=1e-12, max_nodes=12)
    assert result.nodes == 12
    assert result.error > allowed(result.difference, 1e-12)


def test_infinite_logits_are_refused():
    model = tiny_model("llama")
    model.lm_head.weight[3] = float("inf")
    with pytest.raises(InputError, match="NaN or infinite"):
        LayerPath(_unchecked(model), PROMPTS).at_one()


def _unchecked(model):
    """The stack's own check would refuse this model first; the test is about a model that fails on a prompt only."""
    stack = DecoderStack(tiny_model("llama"))
    stack.model = model
    return stack


def test_equal_prompts_are_refused():
    with pytest.raises(InputError, match="the same"):
        LayerPath(DecoderStack(tiny_model("llama")), [[1, 2], [1, 2]]).at_one()


def test_no_weight_is_changed(model):
    before = weight(model, 1, "down_proj").clone()
    scores(DecoderStack(model), 1, projection="down_proj", max_nodes=4)
    assert torch.equal(weight(model, 1, "down_proj"), before)
