"""Sweeps over the layers against separate runs: the same bits, and every layer is visited once or twice."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.benchmarks.encoding import Encoded
from tasks.method.attribute import Attributor
from tasks.method.grid import Grid, parts_of
from tasks.method.integrated_gradients import LayerPath, first_nodes
from tasks.method.options import Attribution
from tasks.method.pairs import UNPRUNED, every_pair
from tasks.models import memory
from tasks.models.memory import room, with_less
from tasks.models.projections import PROJECTIONS
from tasks.models.stack import DecoderStack
from tasks.models.sweep import Path, Without, all_logits_without, gradients
from tasks.runtime.errors import InputError
from tests.models.everywhere import scaled_everywhere
from tests.tiny import ALL, MIXTURES, PER_FAMILY, tiny_model

TOKEN = st.integers(0, 256)
SEQUENCES = st.lists(st.lists(TOKEN, min_size=1, max_size=7), min_size=1, max_size=4, unique_by=tuple)
STACKS = {}


def stack_of(family):
    if family not in STACKS:
        STACKS[family] = DecoderStack(tiny_model(family, torch.float32))
    return STACKS[family]


def packs(stack, sequences, apart):
    units = [[(sequence, [len(sequence) - 1])] for sequence in sequences]
    return stack.pack(units, max_tokens=1 if apart else 512)


def total(residuals):
    """A target that reads the unedited pass: the logit of its largest token."""
    best = residuals.logits.argmax(-1)
    return lambda logits: logits.gather(-1, best.expand(logits.shape[:-1])[..., None])[..., 0]


@contextmanager
def visits(stack):
    """How often each layer's weights are loaded."""
    found, own = Counter(), stack.turn
    inside = []

    @contextmanager
    def turn(index):
        if index not in inside:
            found[index] += 1
        inside.append(index)
        try:
            with own(index):
                yield
        finally:
            inside.remove(index)

    stack.turn = turn
    try:
        yield found
    finally:
        del stack.turn


@pytest.mark.parametrize("family", [*ALL, *MIXTURES])
@settings(max_examples=PER_FAMILY)
@given(data=st.data())
def test_gradients_of_a_sweep_are_those_of_one_path_after_the_other(family, data):
    stack = stack_of(family)
    passes = packs(stack, data.draw(SEQUENCES), data.draw(st.booleans()))
    projection = data.draw(st.sampled_from(PROJECTIONS[:2] if family in MIXTURES else PROJECTIONS))
    by_position = data.draw(st.booleans())
    alphas = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=3))
    layers = data.draw(st.lists(st.sampled_from([0, 1, 2, None]), min_size=1, max_size=4, unique=True))
    shared = [stack.start(packed) for packed in passes]
    paths = [Path(residuals, layer, alphas, by_position) for residuals in shared for layer in layers]
    there = replace(room(stack.model), bytes=data.draw(st.sampled_from([0, 20_000, 60_000, 1e9])))
    for path, found in zip(paths, gradients(stack, paths, total, there, projection), strict=True):
        residuals = stack.clean(path.residuals.pack)
        width = stack.width(projection)
        scale = torch.tensor(alphas)[:, None].repeat(1, width)
        places = range(3) if path.layer is None else [path.layer]
        sizes = [len(residuals.pack.reads) if at == 2 else len(residuals.pack.tokens) for at in places]
        added = [torch.zeros(len(alphas), size, width, requires_grad=by_position) for size in sizes]
        if path.layer is None:
            factors = scale[:, None].repeat(1, 3, 1).requires_grad_(not by_position)
            logits = scaled_everywhere(stack, residuals, factors, projection, added if by_position else None)
        else:
            factors = scale.requires_grad_(not by_position)
            logits = stack.scaled(residuals, path.layer, factors, projection, added[0] if by_position else None)
        totals = total(residuals)(logits).sum(1)
        expected = torch.autograd.grad(totals.sum(), added if by_position else factors)
        assert torch.equal(found.totals, totals.detach())
        for number, at in enumerate(places):
            wanted = expected[number] if by_position else expected[0][:, at] if path.layer is None else expected[0]
            assert torch.equal(found.gradients[at], wanted)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [*ALL, *MIXTURES])
@settings(max_examples=PER_FAMILY)
@given(data=st.data())
def test_logits_of_a_sweep_are_those_of_one_run_after_the_other(family, precision, data):
    stack = stack_of(family)
    projection = data.draw(st.sampled_from(PROJECTIONS[:2] if family in MIXTURES else PROJECTIONS))
    passes = [stack.start(packed) for packed in packs(stack, data.draw(SEQUENCES), data.draw(st.booleans()))]
    for residuals in passes:  # some are further along than others
        for index in range(data.draw(st.integers(0, 3))):
            stack.advance(residuals, index)
    neurons = st.sets(st.integers(0, stack.width(projection) - 1), max_size=8)
    sets = [np.array(sorted(chosen), dtype=int) for chosen in data.draw(st.lists(neurons, min_size=1, max_size=4))]
    layers = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
    runs = [Without(residuals, layer, sets) for residuals in passes for layer in layers]
    there = replace(room(stack.model), bytes=data.draw(st.sampled_from([0, 20_000, 1e9])))
    found = [[] for _ in runs]
    for number, logits in all_logits_without(stack, runs, there, projection, precision):
        found[number].append(logits)
    for run, logits in zip(runs, found, strict=True):
        residuals = stack.clean(run.residuals.pack, precision)
        if run.layer == 3:
            assert torch.equal(torch.cat(logits), residuals.logits[None])
            continue
        alone = [replace(run, residuals=residuals)]
        expected = [part for _, part in all_logits_without(stack, alone, there, projection, precision)]
        assert torch.equal(torch.cat(logits), torch.cat(expected))
        whole = all_logits_without(stack, alone, replace(there, bytes=1e9), projection, precision)
        torch.testing.assert_close(torch.cat(logits), torch.cat([part for _, part in whole]), atol=1e-3, rtol=1e-3)


PROMPTS = [[1, 2, 3, 9, 9], [1, 2, 3, 4], [1, 2, 7, 7, 7, 7], [1, 5, 5, 8]]
ROWS = [Encoded(prompt, [[10, 11], [12]], 0) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("attribution", [{}, {"quadrature": "riemann_right", "steps": 3}, {"path": "all_layers"}])
def test_scores_and_grid_are_the_same_in_common_sweeps(family, attribution):
    stack = stack_of(family)
    rule, found = Attribution(**attribution), {}
    scores = np.random.default_rng(0).random((3, 48)).astype(np.float32)
    for at_hand in (True, False):
        stack.at_hand = at_hand
        attributor = Attributor(stack, PROMPTS, rule)
        values = [v for group in attributor.together(attributor.parts) for v in attributor.compute_together(group)]
        grid = Grid(stack, ROWS, [0, 1, 0, 1], scores)
        parts = parts_of(every_pair(3, (0.1, 0.3)), len(grid.sizes))
        groups = grid.together(parts)
        assert [part for group in groups for part in group] == parts
        found[at_hand] = [str(values), *(str(v) for group in groups for v in grid.compute_together(group))]
        assert len(groups) == 1
        assert len(attributor.together(attributor.parts)) == (3 if at_hand and "path" not in attribution else 1)
    stack.at_hand = True
    assert found[True] == found[False]


@pytest.mark.parametrize("attribution", [{}, {"quadrature": "riemann_right"}, {"method": "gradient_x_activation"}])
def test_a_group_of_layers_is_what_one_sweep_holds(attribution, monkeypatch):
    stack = stack_of("llama")
    stack.at_hand = False
    attributor = Attributor(stack, PROMPTS, Attribution(**attribution))
    expected = str(attributor.compute_together(attributor.parts))
    asked: list[dict] = []
    evaluate_all = LayerPath.evaluate_all
    monkeypatch.setattr(
        LayerPath, "evaluate_all", lambda path, wanted: (asked.append(wanted), evaluate_all(path, wanted))[1]
    )
    found = {}
    for layers, numbers in {(0, 1): [2, 1], (1, 2): [1, 2], (2,): [1, 1, 1]}.items():
        sizes = [attributor.path.stored_bytes(layer, first_nodes(attributor._settings)) for layer in layers]
        attributor.path.together = sum(sizes)
        groups = attributor.together(attributor.parts)
        assert [len(group) for group in groups] == numbers
        assert [part for group in groups for part in group] == attributor.parts
        asked.clear()
        found[layers] = [value for group in groups for value in attributor.compute_together(group)]
        first = asked[0][groups[0][0][0]]
        assert len(first) == first_nodes(attributor._settings)
    assert {str(values) for values in found.values()} == {expected}


def test_every_layer_is_brought_once_for_a_grid_and_twice_for_a_round_of_scores():
    stack = stack_of("llama")
    grid = Grid(stack, ROWS, [0] * 4, np.random.default_rng(0).random((3, 48)).astype(np.float32))
    parts = [part for part in parts_of(every_pair(3, (0.1, 0.3)), 1) if part.layer != UNPRUNED]
    with visits(stack) as seen:
        grid.compute_together(parts)
    assert seen == {0: 1, 1: 1, 2: 1}
    path = LayerPath(stack, PROMPTS, together=1e9)
    with visits(stack) as seen:
        path.evaluate_all({key: [0.0, 0.5] for key in (None, 0, 1, 2)})
    assert sum(seen.values()) <= 2 * 3
    with visits(stack) as seen:
        path.evaluate_all({key: [0.0, 0.5] for key in (1, 2)})
    assert seen == {1: 2, 2: 2}


def test_a_full_memory_halves_what_is_computed_at_once_and_says_so_once(capsys, monkeypatch):
    monkeypatch.setattr(memory, "_warned", False)
    tried = []

    def work(share):
        tried.append(share)
        if share > 0.25:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")
        return "done"

    assert with_less(work) == with_less(work) == "done"
    assert tried == [1, 0.5, 0.25] * 2
    assert capsys.readouterr().err.count("out of memory") == 1
    with pytest.raises(RuntimeError, match="another"):
        with_less(lambda share: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(MemoryError):
        with_less(lambda share: (_ for _ in ()).throw(MemoryError()))


@pytest.mark.parametrize(("text", "bytes_"), [("2.5e9", 2_500_000_000), ("", None), ("1000", 1000)])
def test_the_limit_is_a_number_of_bytes(text, bytes_, monkeypatch):
    monkeypatch.setenv("DSM_MEMORY", text)
    assert memory.limit() == bytes_


@pytest.mark.parametrize("text", ["2GB", "0", "-1", "nan", "inf"])
def test_another_limit_is_refused(text, monkeypatch):
    monkeypatch.setenv("DSM_MEMORY", text)
    with pytest.raises(InputError, match=rf"^DSM_MEMORY: must be a number of bytes, such as 2.5e9, not '{text}'"):
        memory.limit()


@pytest.mark.parametrize(
    ("available", "limit", "own", "expected"),
    [
        (10_000_000, "", 0, True),
        (1000, "", 0, False),  # the system cannot keep the files
        (10_000_000, "1000", 0, False),  # nor may it
        (1000, "", 10_000_000, True),  # the weights are in the process
    ],
)
def test_weights_are_at_hand_where_memory_keeps_them(available, limit, own, expected, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(memory, "own_memory", lambda: own)
    monkeypatch.setenv("DSM_MEMORY", limit)
    assert DecoderStack(tiny_model("llama", torch.float32)).at_hand == expected
