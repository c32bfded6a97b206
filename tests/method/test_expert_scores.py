"""Scores of the neurons of experts: Captum over factors, autograd on the weights, completeness, the unreached."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from numpy.polynomial.legendre import leggauss
from torch.func import functional_call
from transformers import OlmoeConfig, OlmoeForCausalLM

from tasks.method.algorithm import adapt
from tasks.method.attribute import Attributor
from tasks.method.integrated_gradients import LayerPath
from tasks.method.neurons import prominent_neurons
from tasks.method.options import Attribution, Search
from tasks.method.quadrature import allowed
from tasks.method.silence import Neurons, silenced
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tests.method.oracles import FIRSTS, PROMPTS, fixed_target, fixed_targets, mean_target, values_of
from tests.tiny import EACH, MIXTURES, SIZES, tiny_model, tiny_tokenizer

WIDTH = 4 * EACH


@pytest.fixture(params=MIXTURES)
def model(request):
    return tiny_model(request.param)


def attributor(model, prompts=PROMPTS, **settings):
    return Attributor(DecoderStack(model), prompts, Attribution(**settings), FIRSTS[: len(prompts)])


def scores(model, layer, **settings):
    return attributor(model, **settings).attribute((layer,))


def without_experts(model, layer):
    """The model without the neurons of a layer."""
    return silenced(model, Neurons(layer, range(WIDTH)))


def scaled_forward(model, layer, factors):
    """The plain model with the gate's pre-activations of a layer times `factors` [E * d_expert], by its own modules."""
    inside = model.model.layers[layer].mlp.experts
    scaled = (
        inside.gate_up_proj.unflatten(1, (2, EACH))
        * torch.stack([factors.reshape(4, EACH), torch.ones(4, EACH, dtype=factors.dtype)], 1)[..., None]
    )
    name = f"model.layers.{layer}.mlp.experts.gate_up_proj"
    return lambda prompt: functional_call(
        model, {name: scaled.flatten(1, 2)}, (), {"input_ids": torch.tensor([prompt]), "use_cache": False}
    ).logits[0, -1]


def weight_scores(model, layer, nodes):
    """Eq. 4 on the rows of the stacked weights: w . the integral of dF/dw along the path of all gates, [width]."""
    name = f"model.layers.{layer}.mlp.experts.gate_up_proj"
    weight = model.get_parameter(name)
    total = torch.zeros_like(weight)
    for prompt in PROMPTS:
        target = fixed_target(model, prompt)
        for x, share in zip(*leggauss(nodes), strict=True):
            gates = ((x + 1) / 2 * weight[:, :EACH]).requires_grad_(True)
            kwargs = {"input_ids": torch.tensor([prompt]), "use_cache": False}
            whole = torch.cat([gates, weight[:, EACH:]], 1)
            output = functional_call(model, {name: whole}, (), kwargs).logits[0, -1]
            total[:, :EACH] += share / 2 * torch.autograd.grad(target(output), gates)[0]
    return (total * weight)[:, :EACH].sum(-1).flatten() / len(PROMPTS)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_equals_integrated_gradients_of_the_stacked_weights(model, layer):
    path = LayerPath(DecoderStack(model), PROMPTS)
    x, shares = leggauss(6)
    _, gradients = path.evaluate(layer, list((x + 1) / 2))
    found = torch.from_numpy(shares / 2) @ gradients
    expected = weight_scores(model, layer, 6)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert expected.abs().max() > 1e-2


@pytest.mark.parametrize("layer", [0, 2])
def test_equals_captum_over_a_factor_for_each_neuron(model, layer):
    expected = torch.zeros(WIDTH, dtype=torch.float64)
    one = torch.ones(1, WIDTH, dtype=torch.float64)
    for prompt in PROMPTS:
        target = fixed_target(model, prompt)
        forward = lambda factors, prompt=prompt, target=target: torch.stack(  # noqa: E731
            [target(scaled_forward(model, layer, row)(prompt)) for row in factors]
        )
        captum = IntegratedGradients(forward)
        expected += captum.attribute(one, one * 0, n_steps=10, method="riemann_right")[0] / len(PROMPTS)
    found = scores(model, layer, quadrature="riemann_right", steps=10).scores[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("projection", ["gate_proj", "up_proj"])
def test_scores_of_the_last_layer_add_up_to_the_difference(model, projection):
    targets = fixed_targets(model)
    found = scores(model, 2, projection=projection, tolerance=1e-4, max_nodes=512)
    full = mean_target(model, targets)
    with without_experts(model, 2):
        difference = full - mean_target(model, targets)
    assert found.difference == pytest.approx(difference, abs=1e-6)
    assert float(found.scores.sum()) == pytest.approx(difference, abs=allowed(difference, 1e-4))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_scores_of_every_layer_add_up_where_every_token_is_given_to_all_experts(layer):
    torch.manual_seed(0)
    config = OlmoeConfig(**SIZES | {"intermediate_size": EACH}, num_experts=4, num_experts_per_tok=4)
    model = OlmoeForCausalLM(config).double().eval().requires_grad_(False)
    model.set_experts_implementation("eager")
    targets = fixed_targets(model)
    found = scores(model, layer, tolerance=1e-3, max_nodes=512)
    full = mean_target(model, targets)
    with without_experts(model, layer):
        difference = full - mean_target(model, targets)
    assert float(found.scores.sum()) == pytest.approx(difference, abs=allowed(difference, 1e-3))


def test_where_tokens_of_later_layers_change_their_experts_the_gap_is_the_sum_of_the_jumps(model):
    """F along the path by the plain model, with every jump located by bisection."""
    prompt, routes = [*PROMPTS[1], 71, 9, 150, 33, 4, 4, 90, 12], []
    target = fixed_target(model, prompt)
    # The other tokens of the last layer have no effect.
    handles = [
        layer.mlp.experts.register_forward_pre_hook(
            lambda _, inputs, first=first: routes.append(inputs[1][first:].sort().values.tolist())
        )
        for layer, first in zip(model.model.layers[1:], (0, -1), strict=True)
    ]

    def at(alpha):
        """F and the experts of all tokens of the later layers."""
        routes.clear()
        value = float(target(scaled_forward(model, 0, torch.full((WIDTH,), alpha, dtype=torch.float64))(prompt)))
        return value, str(routes)

    edges, jumps = [0.0], []
    grid = np.linspace(0, 1, 401)
    seen = [at(alpha) for alpha in grid]
    for i in range(400):
        low, high, left, right = grid[i], grid[i + 1], seen[i], seen[i + 1]
        if left[1] == right[1]:
            continue
        while high - low > 1e-9:
            middle = (low + high) / 2
            found = at(middle)
            low, high, left, right = (middle, high, found, right) if found[1] == left[1] else (low, middle, left, found)
        edges.append(high)
        jumps.append(right[0] - left[0])
    for handle in handles:
        handle.remove()
    assert len(jumps) > 3

    path = LayerPath(DecoderStack(model), [prompt])
    nodes, shares = leggauss(6)
    smooth = 0.0
    for low, high in zip(edges, [*edges[1:], 1.0], strict=True):
        _, gradients = path.evaluate(0, [low + (high - low) * (x + 1) / 2 for x in nodes])
        smooth += (high - low) / 2 * float(torch.from_numpy(shares) @ gradients.sum(1))
    difference = seen[-1][0] - seen[0][0]
    assert smooth + sum(jumps) == pytest.approx(difference, abs=1e-3)
    assert abs(sum(jumps)) > 1e-2
    result = attributor(model, [prompt], tolerance=1e-3).attribute((0,))
    assert result.difference == pytest.approx(difference, abs=1e-5)
    assert abs(result.gap + sum(jumps)) <= result.error  # an adaptive rule sees the jumps as an error, which it reports
    assert result.error > allowed(difference, 1e-3)


METHODS = [
    {}, {"projection": "up_proj"}, {"quadrature": "riemann_right", "steps": 3}, {"method": "gradient_x_activation"},
    {"method": "activation"}, {"method": "relu_gradient", "steps": 2}, {"method": "saliency"},
    {"method": "shapley", "steps": 4}, {"method": "deeplift"}, {"path": "single"}, {"target": "option_margin"},
]  # fmt: skip


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_neurons_of_experts_without_tokens_have_the_score_0(model, settings):
    found = attributor(model, [[5, 44]], **settings)
    header = found.experts["experts"]
    assert header["each"] == EACH
    some = 0
    for layer in (0, 2):
        result = found.attribute((layer,)).scores[0].reshape(4, EACH)
        none = header["unreached"][layer]
        assert not result[none].any()
        others = [expert for expert in range(4) if expert not in none]
        assert (result[others] != 0).all() or "relu_gradient" in settings.values()
        some += len(none)
    assert some > 0


def test_single_is_what_zeroing_one_row_takes_away(model):
    found = scores(model, 1, path="single").scores[0]
    targets = fixed_targets(model)
    full = mean_target(model, targets)
    for neuron in range(0, WIDTH, 5):
        with silenced(model, Neurons(1, [neuron])):
            assert float(found[neuron]) == pytest.approx(full - mean_target(model, targets), abs=1e-5)


def test_activation_is_the_mean_size_of_what_a_neuron_gives(model):
    found = scores(model, 1, method="activation").scores[0]
    expected = sum(values_of(model, 1, prompt).abs().mean(0) for prompt in PROMPTS) / len(PROMPTS)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)


def test_all_layers_and_down_proj_are_refused_in_one_line(model):
    with pytest.raises(InputError, match=r"^attribution.path: all_layers is not supported for a mixture of experts"):
        attributor(model, path="all_layers")
    with pytest.raises(InputError, match=r"^projection: down_proj of a mixture of experts is not supported"):
        attributor(model, projection="down_proj")


EXAMPLES = [
    {"prompt": f"a {word} film:", "options": [" bad", " good"], "gold": gold}
    for word, gold in (("warm", 1), ("dull", 0), ("fine", 1), ("poor", 0))
]


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("ranking", ["signed", "absolute"])
def test_a_mixture_is_adapted_and_unreached_neurons_come_last(family, ranking):
    model = tiny_model(family, torch.float32)
    examples = [row | {"prompt": row["prompt"][-3:]} for row in EXAMPLES[:1]] + EXAMPLES[1:2]
    found = adapt(
        model, tiny_tokenizer(), examples, attribution=Attribution(max_nodes=4, ranking=ranking),
        search=Search(fractions=[0.1, 0.4]),
    )  # fmt: skip
    unreached = found.scores.header["experts"]["unreached"]
    assert found.scores.values.shape == (3, WIDTH)
    for layer in range(3):
        ranked = found.scores.ranked[layer]
        order = np.argsort(-ranked, kind="stable") // EACH
        number = EACH * len(unreached[layer])
        assert np.isfinite(ranked).all()
        assert set(order[WIDTH - number :]) == set(unreached[layer])
        assert not found.scores.values[layer].reshape(4, EACH)[unreached[layer]].any()
        assert not set(prominent_neurons(ranked, 0.4) // EACH) & set(unreached[layer])
    assert sum(map(len, unreached)) > 0
    assert found.recipe.d_ff == WIDTH
    weight = model.model.layers[found.recipe.layer].mlp.experts.gate_up_proj
    before = weight.clone()
    with silenced(model, found.recipe):
        gone = weight[:, :EACH].abs().sum(-1).flatten() == 0
        assert gone.nonzero()[:, 0].tolist() == found.recipe.neurons
        assert torch.equal(weight[:, EACH:], before[:, EACH:])
    assert torch.equal(weight, before)
