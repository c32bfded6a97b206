"""Channel permutations against loops over groups and against all permutations of small matrices."""

from itertools import combinations, permutations

import pytest
import torch

from tasks.runtime.errors import InputError
from tasks.sparsity import channels
from tasks.sparsity.channels import by_permuted_group, exchanged, reallocated, refined
from tasks.sparsity.metrics import NOfM

PATTERNS = [NOfM(2, 4), NOfM(1, 4), NOfM(3, 4), NOfM(1, 2), NOfM(4, 8)]


def scores(seed, rows=5, inputs=16):
    """Scores with inputs of very different magnitudes, as in a network."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(inputs, generator=generator).exp() ** 3
    return torch.rand(rows, inputs, generator=generator, dtype=torch.float64) * size


def kept(score, order, pattern):
    """The sum of the n largest of every m scores of a row in an order, one by one."""
    total = 0.0
    for row in score.tolist():
        for start in range(0, len(order), pattern.m):
            group = sorted(row[int(j)] for j in order[start : start + pattern.m])
            total += sum(group[-pattern.n :])
    return total


def all_groupings(inputs, m):
    """All ways to divide these inputs into groups of m, as orders."""
    if not inputs:
        yield []
        return
    first, *rest = inputs
    for others in combinations(rest, m - 1):
        for more in all_groupings([j for j in rest if j not in others], m):
            yield [first, *others, *more]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_reallocation_deals_sorted_inputs_out_in_alternating_direction(pattern):
    score = scores(0)
    ranked = sorted(range(16), key=lambda j: float(score[:, j].sum()))
    expected = [0] * 16
    groups = 16 // pattern.m
    for position, j in enumerate(ranked):
        slot, group = divmod(position, groups)
        if slot % 2:
            group = groups - 1 - group
        expected[group * pattern.m + slot] = j
    assert reallocated(score, pattern).tolist() == expected


@pytest.mark.parametrize("pattern", [NOfM(2, 4), NOfM(1, 4), NOfM(3, 4), NOfM(1, 2)], ids=str)
def test_each_assignment_is_the_best_of_all_exchanges_within_its_slot(pattern):
    """Against all permutations of the slot's inputs over the groups."""
    better = 0
    for seed in range(3):
        score = scores(seed, inputs=5 * pattern.m)
        order = reallocated(score, pattern)
        for slot in range(pattern.m):
            groups = order.view(-1, pattern.m).tolist()
            trials = []
            for trial in permutations(group[slot] for group in groups):
                changed = [[*group[:slot], j, *group[slot + 1 :]] for group, j in zip(groups, trial, strict=True)]
                trials.append(kept(score, [j for group in changed for j in group], pattern))
            found = exchanged(score, order, pattern, slot)
            assert kept(score, found, pattern) == pytest.approx(max(trials), rel=1e-12)
            better += max(trials) > kept(score, order, pattern) + 1e-9
            order = found
        assert torch.equal(order, refined(score, reallocated(score, pattern), pattern))
    assert better


@pytest.mark.parametrize("seed", range(6))
def test_with_two_groups_it_comes_near_to_the_best_of_all_groupings(seed):
    """All 35 groupings of 8 inputs in two groups of four; random ones keep less on average."""
    score, pattern = scores(seed, rows=4, inputs=8), NOfM(2, 4)
    every = [kept(score, order, pattern) for order in all_groupings(list(range(8)), 4)]
    assert len(every) == 35
    found = kept(score, by_permuted_group(score, pattern)[1], pattern)
    assert sum(every) / 35 < found <= max(every) * (1 + 1e-12)
    assert found > 0.97 * max(every)


def test_an_exchange_that_is_the_whole_problem_is_solved_exactly():
    """1:2 of one row: the best grouping puts the larger half with the smaller one and keeps the larger half."""
    score = scores(3, rows=1, inputs=12)
    _, order = by_permuted_group(score, NOfM(1, 2))
    assert kept(score, order, NOfM(1, 2)) == pytest.approx(float(score.sort().values[0, 6:].sum()))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_mask_is_in_the_order_of_the_weights(pattern):
    score = scores(1)
    mask, order = by_permuted_group(score, pattern)
    assert sorted(order.tolist()) == list(range(16))
    assert (mask[:, order].view(5, -1, pattern.m).sum(2) == pattern.m - pattern.n).all()
    assert float(score[~mask].sum()) == pytest.approx(kept(score, order, pattern))


def test_in_small_pieces_it_is_the_same(monkeypatch):
    score = scores(2, rows=9, inputs=40)
    expected = by_permuted_group(score, NOfM(2, 4))
    monkeypatch.setattr(channels, "ELEMENTS", 1)
    assert all(torch.equal(a, b) for a, b in zip(by_permuted_group(score, NOfM(2, 4)), expected, strict=True))


def test_groups_must_fill_the_inputs():
    with pytest.raises(InputError, match="4:8 needs layers with a multiple of 8 inputs, not 12"):
        by_permuted_group(torch.ones(2, 12), NOfM(4, 8))
