"""Scores against the published formulas element by element, and selections against their counts."""

import math

import numpy as np
import pytest
import torch

from tasks.runtime.errors import InputError
from tasks.sparsity import metrics
from tasks.sparsity.bitmask import pack_mask, unpack_mask
from tasks.sparsity.metrics import NOfM

PATTERNS = [NOfM(2, 4), NOfM(4, 8), NOfM(1, 4)]


def layer(seed=0, shape=(6, 16), sequences=3):
    """A weight and the inputs of some sequences, of different lengths."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=shape)
    inputs = [rng.normal(size=(5 + i, shape[1])) * rng.exponential(size=shape[1]) for i in range(sequences)]
    squared = sum((x**2).sum(0) for x in inputs) / len(inputs)
    return torch.tensor(weight), inputs, torch.tensor(squared)


def naive_norm(inputs, j):
    """sqrt of the mean over the sequences of ||X_j||^2, as published."""
    return math.sqrt(sum(sum(float(x[t, j]) ** 2 for t in range(len(x))) for x in inputs) / len(inputs))


def test_magnitude():
    weight, _, _ = layer()
    assert metrics.magnitude(weight).tolist() == [[abs(w) for w in row] for row in weight.tolist()]


def test_wanda():
    weight, inputs, squared = layer()
    expected = [[abs(w) * naive_norm(inputs, j) for j, w in enumerate(row)] for row in weight.tolist()]
    np.testing.assert_allclose(metrics.wanda(weight, squared), expected, rtol=1e-12)


def test_ria():
    weight, inputs, squared = layer()
    rows = weight.abs().tolist()
    columns = list(zip(*rows, strict=True))
    expected = [
        [(w / sum(columns[j]) + w / sum(row)) * naive_norm(inputs, j) ** 0.5 for j, w in enumerate(row)] for row in rows
    ]
    np.testing.assert_allclose(metrics.ria(weight, squared), expected, rtol=1e-12)


def test_ria_of_rows_and_columns_of_zeros_is_zero():
    weight, _, squared = layer()
    weight[2], weight[:, 5] = 0, 0
    score = metrics.ria(weight, squared)
    assert not score[2].any()
    assert not score[:, 5].any()
    assert torch.isfinite(score).all()


@pytest.mark.parametrize("sparsity", [0.05, 0.29, 0.3, 0.5, 0.7, 0.99])
def test_counts_are_exact(sparsity):
    score = torch.rand(7, 100, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # many ties
    per_row = metrics.by_row(score, sparsity)
    assert per_row.sum(1).tolist() == [round(sparsity * 100)] * 7
    whole = metrics.by_matrix(score, sparsity)
    assert int(whole.sum()) == math.floor(round(sparsity * 700, 6))
    assert score[whole].max() <= score[~whole].min()
    for row, mask in zip(score, per_row, strict=True):
        assert row[mask].max() <= row[~mask].min()


def test_of_equal_scores_the_first_go():
    score = torch.tensor([[1.0, 0, 1, 1, 2, 1], [1, 1, 1, 1, 1, 1]])
    assert metrics.by_row(score, 0.5).int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert metrics.by_matrix(score, 0.5).int().tolist() == [[1, 1, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0]]
    assert metrics.by_group(score, NOfM(1, 3)).int().tolist() == [[1, 1, 0, 1, 0, 1], [1, 1, 0, 1, 1, 0]]


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_the_published_threshold_takes_one_weight_more(sparsity):
    score = layer()[0].abs()
    threshold = score.flatten().sort().values[int(score.numel() * sparsity)]
    ours = metrics.by_matrix(score, sparsity)
    assert not (ours & ~(score <= threshold)).any()
    assert int((score <= threshold).sum()) == int(ours.sum()) + 1


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_group_keeps_its_n_largest(pattern):
    score = layer()[0].abs()
    mask = metrics.by_group(score, pattern)
    groups = zip(score.view(-1, pattern.m), mask.view(-1, pattern.m), strict=True)
    for scores, removed in groups:
        kept = set(scores.argsort(descending=True)[: pattern.n].tolist())
        assert {j for j in range(pattern.m) if not removed[j]} == kept


def test_groups_must_fill_the_inputs():
    with pytest.raises(InputError, match="4:8 needs layers with a multiple of 8 inputs, not 12"):
        metrics.by_group(torch.ones(2, 12), NOfM(4, 8))


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, math.nan, NOfM(0, 4), NOfM(4, 4)], ids=str)
def test_impossible_targets(target):
    with pytest.raises(InputError, match="sparsity"):
        metrics.check_target(target)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8)])
def test_packed_masks_come_back(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_mask(mask)
    assert len(packed) == (mask.numel() + 7) // 8
    assert torch.equal(unpack_mask(packed, shape), mask)
