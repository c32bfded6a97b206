"""The stack's packed, edited runs against the plain model with edited weights, for every family."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from tasks.method.silence import Neurons, silenced
from tasks.models.memory import Room
from tasks.models.stack import DecoderStack
from tasks.models.sweep import logits_without
from tasks.runtime.errors import InputError
from tests.tiny import ALL, MIXTURES, PER_FAMILY, SIZES, VOCABULARY, linear, tiny_model, zero_rows

TOKEN = st.integers(0, VOCABULARY - 1)
# Gemma 2 attends in eager mode, whose softmax transformers computes in float32, as it does that of routers.
TOLERANCE = {"gemma2": 1e-4} | dict.fromkeys(MIXTURES, 1e-4)


def plain_logits(model, sequence, position):
    return model(torch.tensor([sequence]), use_cache=False).logits[0, position]


@pytest.mark.parametrize("family", [*ALL, *MIXTURES])
@settings(max_examples=PER_FAMILY)
@given(data=st.data())
def test_edited_runs_equal_the_model_with_zeroed_rows(family, data):
    model = tiny_model(family)
    stack = DecoderStack(model)
    prefix = data.draw(st.lists(TOKEN, max_size=6))
    tails = data.draw(st.lists(st.lists(TOKEN, min_size=1, max_size=7), min_size=1, max_size=4, unique_by=tuple))
    units = [[([*prefix, *tail], [len(prefix), len(prefix) + len(tail) - 1])] for tail in tails]
    layer = data.draw(st.integers(0, len(stack) - 1))
    silenced = sorted(data.draw(st.sets(st.integers(0, stack.d_ff - 1), max_size=stack.d_ff)))
    scale = torch.ones(2, stack.d_ff, dtype=torch.float64)
    scale[1, silenced] = 0

    results = {}
    for packed in stack.pack(units, max_tokens=data.draw(st.sampled_from([1, 12, 512]))):
        logits = stack.scaled(stack.clean(packed), layer, scale)
        assert {unit for unit, _, _ in packed.read_of} == set(packed.units)
        results |= {key: logits[:, read] for key, read in packed.read_of.items()}

    for edit in (0, 1):
        if edit:
            zero_rows(model, layer, silenced)
        for (unit, _, position), logits in results.items():
            expected = plain_logits(model, units[unit][0][0], position)
            torch.testing.assert_close(logits[edit], expected, atol=TOLERANCE.get(family, 1e-10), rtol=1e-5)
    assert len(results) == len({(u, p) for u, unit in enumerate(units) for p in unit[0][1]})


@pytest.mark.parametrize("family", [*ALL, *MIXTURES])
@settings(max_examples=PER_FAMILY)
@given(data=st.data())
def test_silenced_runs_equal_a_padded_batch_of_the_model_with_zeroed_rows(family, data):
    model = tiny_model(family)
    stack = DecoderStack(model)
    sequences = data.draw(st.lists(st.lists(TOKEN, min_size=1, max_size=9), min_size=1, max_size=4, unique_by=tuple))
    layer = data.draw(st.integers(0, len(stack) - 1))
    neurons = st.sets(st.integers(0, stack.d_ff - 1), max_size=stack.d_ff)
    sets = [np.array(sorted(chosen), dtype=int) for chosen in data.draw(st.lists(neurons, min_size=1, max_size=3))]
    if data.draw(st.booleans()):
        sets = [np.unique(np.concatenate(sets[: i + 1])) for i in range(len(sets))]  # nested, as those of a grid
    units = [[(sequence, [len(sequence) - 1])] for sequence in sequences]
    tokens = data.draw(st.sampled_from([1, 10, 1000]))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Room, "forward_tokens", property(lambda room: tokens))
        for packed in stack.pack(units, max_tokens=data.draw(st.sampled_from([1, 12, 512]))):
            logits = torch.cat(list(logits_without(stack, stack.clean(packed), layer, sets)))
            found |= {unit: logits[:, read] for (unit, _, _), read in packed.read_of.items()}

    side, length = data.draw(st.sampled_from(["left", "right"])), max(map(len, sequences))
    batch = [_padded(sequence, length, side, 0) for sequence in sequences]
    mask = torch.tensor([_padded([1] * len(sequence), length, side, 0) for sequence in sequences])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    for i, chosen in enumerate(sets):
        zero_rows(model, layer, chosen)
        plain = model(torch.tensor(batch), attention_mask=mask, position_ids=positions, use_cache=False).logits
        for number, sequence in enumerate(sequences):
            expected = plain[number, -1 if side == "left" else len(sequence) - 1]
            if family == "gemma2":  # eager attention in float64 gives NaN for padding that attends to nothing
                expected = plain_logits(model, sequence, -1)
            torch.testing.assert_close(found[number][i], expected, atol=TOLERANCE.get(family, 1e-10), rtol=1e-5)
        model.load_state_dict(whole)


def _padded(values, length, side, pad):
    padding = [pad] * (length - len(values))
    return padding + values if side == "left" else values + padding


def test_a_shared_prefix_is_stored_once():
    stack = DecoderStack(tiny_model("llama"))
    [packed] = stack.pack([[([1, 2, 3, 4], [3])], [([1, 2, 3, 5, 6], [4])]])
    assert packed.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert packed.positions.tolist() == [0, 1, 2, 3, 3, 4]
    assert packed.branches.tolist() == [-1, -1, -1, 0, 1, 1]


def test_a_unit_is_never_split():
    stack = DecoderStack(tiny_model("llama"))
    units = [[([i, i, i], [2]), ([i, i, i + 1], [2])] for i in range(0, 20, 2)]
    packs = stack.pack(units, max_tokens=5)
    assert sorted(unit for packed in packs for unit in packed.units) == list(range(10))
    assert all(len(packed.tokens) <= 5 for packed in packs)


def test_no_hook_and_no_change_is_left_behind():
    model = tiny_model("gemma3")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stack = DecoderStack(model)
    [packed] = stack.pack([[([1, 2, 3], [2])]])
    stack.scaled(stack.clean(packed), 1, torch.zeros(1, stack.d_ff, dtype=torch.float64))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_whose_mlp_has_no_known_form_is_refused_by_name():
    model = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match=r"^model: MambaForCausalLM has no MLPs of a known form: looked for"):
        DecoderStack(model.eval())


@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
def test_a_bias_in_a_gated_mlp_is_zeroed_with_its_row(projection):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, mlp_bias=True)).double().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.normal_(std=0.3)
    stack, neurons = DecoderStack(model), [1, 5, 30]
    [packed] = stack.pack([[([1, 2, 3, 4], [3])]])
    [found] = logits_without(stack, stack.clean(packed), 1, [np.array(neurons)], projection)
    scale = torch.ones(1, stack.width(projection), dtype=torch.float64)
    scale[0, neurons] = 0
    scaled = stack.scaled(stack.clean(packed), 1, scale, projection)
    with silenced(model, Neurons(1, neurons, projection)):
        assert not linear(model, 1, projection).bias[neurons].any()
        expected = plain_logits(model, [1, 2, 3, 4], 3)
    torch.testing.assert_close(found[0, 0], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scaled[0, 0], expected, atol=1e-6, rtol=1e-5)
    assert linear(model, 1, projection).bias[neurons].all()


def test_a_family_that_the_view_does_not_reproduce_is_refused(monkeypatch):
    model = tiny_model("llama")
    norm = model.model.norm
    monkeypatch.setattr(model.model, "norm", torch.nn.Sequential(norm, norm))
    stack_norm_differs = torch.nn.Identity()
    monkeypatch.setattr(DecoderStack, "head", lambda self, hidden: model.lm_head(stack_norm_differs(hidden)))
    with pytest.raises(InputError, match="this family is not supported"):
        DecoderStack(model)
