"""The walk against hooks on the whole model, pruned up to the layer in question."""

import copy

import pytest
import torch
from torch import nn

from tasks.models.loading import Loaded
from tasks.runtime.errors import InputError
from tasks.sparsity.bitmask import unpack_mask
from tasks.sparsity.layers import Layers
from tasks.sparsity.metrics import NOfM, ria
from tasks.sparsity.weight_pruning import METHODS, prune_weights, sparse
from tests.tiny import FAMILIES, SIZES, tiny_model

SEQUENCES = [[(7 * i + 3 * j) % 250 for j in range(length)] for i, length in enumerate((12, 9, 12, 20))]
TARGETS = [0.3, 0.5, NOfM(2, 4), NOfM(4, 8)]


def linears(model):
    """The linear layers of the decoder layers, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n}


def bits(model):
    """The bytes of all parameters."""
    return {name: p.detach().float().numpy().tobytes() for name, p in model.named_parameters()}


def inputs_by_hooks(model):
    """The inputs of each linear layer in a plain run of the model on each sequence."""
    seen = {name: [] for name in linears(model)}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0][0].clone()))
        for name, module in linears(model).items()
    ]
    for sequence in SEQUENCES:
        model(torch.tensor([sequence]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_of_each_layer_are_those_of_the_partly_pruned_model(family):
    model = tiny_model(family)
    layers = Layers(model)
    assert layers.all_linears().keys() == linears(model).keys()
    for index, statistics in layers.walk(SEQUENCES, products=True):
        seen = inputs_by_hooks(model)
        for name, linear in layers.linears[index].items():
            expected = sum(2 * x.T @ x for x in seen[name]) / len(SEQUENCES)
            torch.testing.assert_close(statistics.hessian(name), expected, rtol=1e-9, atol=1e-9)
            linear.weight[:, ::3] = 0  # so that the next layers see other inputs
    assert index == SIZES["num_hidden_layers"] - 1


def test_squared_norms_are_the_means_over_the_sequences():
    model = tiny_model("llama", torch.float32)
    _, statistics = next(Layers(model).walk(SEQUENCES, products=False))
    seen = inputs_by_hooks(model)
    for name in Layers(model).linears[0]:
        expected = sum(x.double().square().sum(0) for x in seen[name]) / len(SEQUENCES)
        assert statistics.squared_norms(name).dtype == torch.float32
        torch.testing.assert_close(statistics.squared_norms(name).double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_all_linear_layers_and_nothing_else_are_pruned(family, method):
    model = tiny_model(family, torch.float32)
    before = bits(model)
    report = prune_weights(Loaded(model, None), SEQUENCES, method, 0.5)
    changed = {name for name, value in bits(model).items() if value != before[name]}
    assert changed == {f"{name}.weight" for name in linears(model)}
    assert report.matrices.keys() == linears(model).keys()
    if family in ("llama3", "qwen3"):
        assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_sparsity_of_every_matrix_is_exact(method, target):
    model = tiny_model("phi3", torch.float32)
    report = prune_weights(Loaded(model, None), SEQUENCES, method, target)
    for name, linear in linears(model).items():
        zeros, size = linear.weight == 0, linear.weight.numel()
        matrix = report.matrices[name]
        assert matrix.shape == linear.weight.shape
        assert matrix.removed == int(zeros.sum())
        assert matrix.sparsity == matrix.removed / size
        if isinstance(target, NOfM):
            assert (zeros.view(len(zeros), -1, target.m).sum(2) == target.m - target.n).all()
        elif method == "wanda":
            assert set(zeros.sum(1).tolist()) == {int(linear.in_features * target)}
        else:
            assert matrix.removed == int(size * target)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_permuted_n_of_m_keeps_more_of_the_score_and_leaves_the_layer_as_it_is(family):
    """A permuted matrix on permuted inputs gives the same output, and the order of the weights is as before."""
    plain, permuted, base = (Loaded(tiny_model(family, torch.float32), None) for _ in range(3))
    before = prune_weights(plain, SEQUENCES, "ria", NOfM(2, 4))
    report = prune_weights(permuted, SEQUENCES, "ria", NOfM(2, 4), permuted=True)
    assert (before.permuted, report.permuted) == (False, True)
    assert before.sparsity == report.sparsity == 0.5
    unpruned, squared = linears(base.model), {}
    _, statistics = next(Layers(base.model).walk(SEQUENCES, products=False))
    for name in Layers(base.model).linears[0]:
        squared[name] = statistics.squared_norms(name)
    for name, linear in linears(permuted.model).items():
        matrix, weight = report.matrices[name], linear.weight
        assert matrix.order.dtype == torch.int32
        order = matrix.order.long()
        removed = unpack_mask(matrix.mask, matrix.shape)
        assert (removed[:, order].view(len(weight), -1, 4).sum(2) == 2).all()
        assert torch.equal(weight, unpruned[name].weight.masked_fill(removed, 0))
        x = torch.linspace(-1, 1, weight.shape[1])
        torch.testing.assert_close(weight[:, order] @ x[order], weight @ x)
        if name in squared:  # the same inputs in both
            score = ria(unpruned[name].weight, squared[name])
            kept = [float(score[~unpack_mask(r.matrices[name].mask, matrix.shape)].sum()) for r in (before, report)]
            assert kept[1] > kept[0]


@pytest.mark.parametrize(("method", "target"), [("wanda", NOfM(2, 4)), ("ria", 0.5)], ids=str)
def test_the_permutation_is_rias_for_n_of_m(method, target):
    model = tiny_model("llama", torch.float32)
    before = bits(model)
    with pytest.raises(InputError, match="permuted: the channel permutation is RIA's, for N:M"):
        prune_weights(Loaded(model, None), SEQUENCES, method, target, permuted=True)
    assert bits(model) == before


@pytest.mark.parametrize("method", METHODS)
def test_the_context_restores_bit_for_bit(method):
    model = tiny_model("llama", torch.float32)
    model.model.layers[1].mlp.up_proj.weight[0, 0] = -0.0
    before, places = bits(model), [p.data_ptr() for p in model.parameters()]
    with sparse(Loaded(model, None), SEQUENCES, method, 0.5) as report:
        assert bits(model) != before
        assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert bits(model) == before
    assert [p.data_ptr() for p in model.parameters()] == places
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def test_the_context_restores_after_an_error():
    model = tiny_model("llama", torch.float32)
    before = bits(model)

    def interrupted():
        with sparse(Loaded(model, None), SEQUENCES, "magnitude", 0.5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert bits(model) == before


def test_inputs_that_are_not_finite_are_refused_and_restored():
    model = tiny_model("llama", torch.float32)
    model.model.layers[0].self_attn.v_proj.weight[0, 0] = torch.nan
    before = bits(model)
    with (
        pytest.raises(InputError, match="not positive definite"),
        sparse(Loaded(model, None), SEQUENCES, "sparsegpt", 0.5),
    ):
        pass
    assert bits(model) == before


def test_bfloat16_weights_stay_bfloat16():
    model = tiny_model("llama", torch.bfloat16)
    for method in METHODS:
        with sparse(Loaded(model, None), SEQUENCES, method, 0.5) as report:
            for name, linear in linears(model).items():
                assert linear.weight.dtype == torch.bfloat16
                assert int((linear.weight == 0).sum()) >= report.matrices[name].removed


@pytest.mark.parametrize(
    ("sequences", "target", "message"),
    [
        ([], 0.5, "at least one sequence"),
        ([[1], []], 0.5, "none may be empty"),
        ([[1] * 513], 0.5, "513 tokens; the model's context has 512"),
        (SEQUENCES, 1.5, "not between 0 and 1"),
        (SEQUENCES, NOfM(2, 5), "multiple of 5 inputs, not 32"),
    ],
)
def test_refused_before_anything_is_pruned(sequences, target, message):
    model = tiny_model("llama", torch.float32)
    before = bits(model)
    with pytest.raises(InputError, match=message):
        prune_weights(Loaded(model, None), sequences, "wanda", target)
    assert bits(model) == before


def test_experts_are_refused():
    model = tiny_model("llama", torch.float32)
    model.model.layers[1].mlp.experts = nn.Parameter(torch.zeros(2, 3, 4))
    with pytest.raises(InputError, match="experts is not the weight of a linear layer"):
        Layers(model)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "ria"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_no_weight_of_a_spared_neuron_is_removed(family, method):
    loaded = Loaded(tiny_model(family, torch.float32), None)
    before = copy.deepcopy(loaded.model)
    neurons = [0, 5, 47]
    report = prune_weights(loaded, SEQUENCES, method, 0.5, {1: neurons})
    mlp, old = (model.model.layers[1].mlp for model in (loaded.model, before))
    if family == "phi3":
        pairs = [(mlp.gate_up_proj, old.gate_up_proj, [*neurons, *(48 + n for n in neurons)])]
    else:
        pairs = [(mlp.gate_proj, old.gate_proj, neurons), (mlp.up_proj, old.up_proj, neurons)]
    for new, was, rows in pairs:
        assert torch.equal(new.weight[rows], was.weight[rows])
        assert int((new.weight == 0).sum()) > 0
    assert torch.equal(mlp.down_proj.weight[:, neurons], old.down_proj.weight[:, neurons])
    if method == "wanda":  # unspared rows lose half of their weights, as before
        plain = Loaded(copy.deepcopy(before), None)
        prune_weights(plain, SEQUENCES, method, 0.5)
        others = [n for n in range(48) if n not in neurons]
        kind = "gate_up_proj" if family == "phi3" else "gate_proj"
        one, two = (getattr(model.model.layers[1].mlp, kind).weight[others] for model in (loaded.model, plain.model))
        assert torch.equal(one, two)
        assert ((mlp.down_proj.weight == 0).sum(1) == 24).all()
    assert (report.sparsity < 0.5) == (method == "wanda")


@pytest.mark.parametrize(("method", "target"), [("sparsegpt", 0.5), ("wanda", NOfM(2, 4))])
def test_what_cannot_spare_neurons_says_so(method, target):
    with pytest.raises(InputError, match="spared: neurons can be spared only by magnitude, wanda and ria"):
        prune_weights(Loaded(tiny_model("llama", torch.float32), None), SEQUENCES, method, target, {0: [1]})
