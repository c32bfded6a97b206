"""Mixtures of experts: packed and edited runs against the plain model and against loops over its tokens."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tasks.models.memory import room
from tasks.models.model_spec import ModelSpec
from tasks.models.routing import unreached
from tasks.models.stack import DecoderStack
from tasks.models.sweep import logits_without
from tasks.pipeline.model_size import model_size
from tasks.runtime.errors import InputError
from tests.method.oracles import values_of
from tests.tiny import EACH, MIXTURES, PER_FAMILY, SIZES, VOCABULARY, tiny_model, zero_rows

TOKEN = st.integers(0, VOCABULARY - 1)
SEQUENCES = [[3, 1, 4, 1, 5, 9], [3, 1, 4, 2, 6]]
SMALL = SIZES | {"intermediate_size": EACH}


def routes(model, sequence):
    """The experts of each layer and token in the plain model, [layers][T, k]."""
    found = []
    handles = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, inputs: found.append(inputs[1]))
        for layer in model.model.layers
    ]
    model(torch.tensor([sequence]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", MIXTURES)
def test_values_and_directions_of_neurons_make_the_output_of_the_layer(family):
    model = tiny_model(family)
    stack = DecoderStack(model)
    assert (stack.d_ff, stack.mlps[1].number, stack.mlps[1].each) == (4 * EACH, 4, EACH)
    seen, out = [], []
    handles = [stack.mlps[1].watch("gate_proj", seen.append)]
    handles += [model.model.layers[1].mlp.register_forward_hook(lambda _, __, y: out.append(y[0]))]
    model(torch.tensor([SEQUENCES[0]]), use_cache=False)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(seen[0], values_of(model, 1, SEQUENCES[0]), atol=1e-12, rtol=1e-9)
    assert (seen[0] == 0).sum() >= 2 * EACH * len(SEQUENCES[0])  # two of four experts
    torch.testing.assert_close(seen[0] @ stack.mlps[1].directions(range(4 * EACH)), out[0], atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize("family", MIXTURES)
@settings(max_examples=PER_FAMILY)
@given(data=st.data())
def test_no_prediction_depends_on_what_it_is_packed_with(family, data):
    """Every sequence alone, and all of them in one pack, with neurons of a layer silenced."""
    stack = DecoderStack(tiny_model(family))
    sequences = data.draw(st.lists(st.lists(TOKEN, min_size=1, max_size=8), min_size=2, max_size=5, unique_by=tuple))
    units = [[(sequence, [len(sequence) - 1])] for sequence in sequences]
    layer = data.draw(st.integers(0, 2))
    silent = np.array(sorted(data.draw(st.sets(st.integers(0, 47), max_size=40))), dtype=int)
    found = []
    for size in (1, 512):
        logits = {}
        for packed in stack.pack(units, max_tokens=size):
            [part] = logits_without(stack, stack.clean(packed), layer, [silent])
            logits |= {unit: part[0, read] for (unit, _, _), read in packed.read_of.items()}
        found.append(torch.stack([logits[unit] for unit in range(len(units))]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_pruned_layer_changes_the_routes_of_the_layers_above_it_and_not_its_own(family):
    model = tiny_model(family)
    stack = DecoderStack(model)
    silent = np.arange(0, 48, 2)
    sequence = list(range(3, 23))
    [packed] = stack.pack([[(sequence, [len(sequence) - 1])]])
    before = routes(model, sequence)
    seen = []
    residuals = stack.clean(packed)
    handle = model.model.layers[1].mlp.experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    [[logits]] = logits_without(stack, residuals, 0, [silent])
    handle.remove()
    zero_rows(model, 0, silent)
    after = routes(model, sequence)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1].sort().values, before[1].sort().values)
    assert torch.equal(seen[-1].sort().values, after[1].sort().values)
    torch.testing.assert_close(
        logits[0], model(torch.tensor([sequence]), use_cache=False).logits[0, -1], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_without_tokens_are_those_that_no_token_of_the_plain_model_is_given_to(family):
    model = tiny_model(family)
    stack = DecoderStack(model)
    sequence = [5, 9, 11]
    index = routes(model, sequence)
    expected = [sorted(set(range(4)) - set(layer.flatten().tolist())) for layer in index]
    [packed] = stack.pack([[(sequence, [0, 1, 2])]])
    assert unreached(stack, lambda: stack.clean(packed)) == expected
    [packed] = stack.pack([[(sequence, [2])]])
    expected[-1] = sorted(set(range(4)) - set(index[-1][-1].tolist()))  # the other tokens there have no effect
    assert unreached(stack, lambda: stack.clean(packed)) == expected
    assert len(expected[-1]) == 2
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_the_functions_of_the_model_are_put_back():
    model = tiny_model("mixtral")
    before = model.config._experts_implementation
    stack = DecoderStack(model)
    [packed] = stack.pack([[([1, 2, 3], [2])]])
    handle = stack.mlps[0].edit_rows("gate_proj", torch.ones(1, 48, dtype=torch.float64), None)
    stack.clean(packed)
    handle.remove()
    assert model.config._experts_implementation == before
    assert all("forward" not in vars(layer.mlp.experts) for layer in model.model.layers)


def test_pruned_runs_in_bfloat16_are_computed_in_float32():
    stack = DecoderStack(tiny_model("olmoe", torch.float32))
    [packed] = stack.pack([[(s, [len(s) - 1])] for s in SEQUENCES])
    sets = [np.arange(0, 48, 3)]
    found = [
        torch.cat(list(logits_without(stack, stack.clean(packed, precision), 0, sets)))
        for precision in ("float32", "bfloat16")
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_plan_and_the_batches_count_the_experts_that_a_token_is_given_to(family, tmp_path):
    model = tiny_model(family, torch.float32)
    model.save_pretrained(tmp_path)
    spec = ModelSpec.model_validate({"source": {"kind": "path", "path": str(tmp_path), "sha256": "0" * 64}})
    attention = sum(m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    size = model_size(spec, tmp_path, tmp_path, field="models.tiny")
    assert size.multiply_adds == attention + 3 * 3 * 32 * 2 * EACH
    assert room(model).d_ff == 2 * (EACH + 32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Qwen2MoeForCausalLM(
                Qwen2MoeConfig(**SMALL, moe_intermediate_size=EACH, shared_expert_intermediate_size=8, num_experts=4)
            ),
            r"Qwen2MoeForCausalLM is a mixture with shared experts \(shared_expert\), which is not supported",
        ),
        (
            lambda: Qwen3MoeForCausalLM(
                Qwen3MoeConfig(
                    **SIZES, moe_intermediate_size=EACH, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1]
                )
            ),
            "Qwen3MoeForCausalLM has experts in some layers and not in others, which is not supported",
        ),
        (
            lambda: transformers.GptOssForCausalLM(
                transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
            ),
            "GptOssForCausalLM is a mixture of experts of a form that is not supported: looked for a router and",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_other_mixtures_are_refused_in_one_line(make, message):
    torch.manual_seed(0)
    with pytest.raises(InputError, match=rf"^model: {message}") as caught:
        DecoderStack(make().eval().requires_grad_(False))
    assert "\n" not in str(caught.value)


def test_experts_that_compute_more_than_the_formula_are_refused(monkeypatch):
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4)).eval().requires_grad_(False)
    block = model.model.layers[2].mlp
    own = block.forward
    monkeypatch.setattr(block, "forward", lambda x: own(x) + x)
    with pytest.raises(InputError, match=r"experts do not compute down_proj\(act\(gate\) \* up\)"):
        DecoderStack(model)


def test_rows_of_down_proj_are_refused():
    stack = DecoderStack(tiny_model("mixtral"))
    [packed] = stack.pack([[([1, 2, 3], [2])]])
    with pytest.raises(InputError, match=r"^projection: down_proj of a mixture of experts is not supported"):
        list(logits_without(stack, stack.clean(packed), 1, [np.array([1])], "down_proj"))
