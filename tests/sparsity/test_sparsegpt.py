"""SparseGPT against the optimal brain surgeon with explicit inverses, least squares, magnitude and Wanda."""

import numpy as np
import pytest
import torch

from tasks.runtime.errors import InputError
from tasks.sparsity import metrics, sparsegpt
from tasks.sparsity.metrics import NOfM

TARGETS = [0.3, 0.5, 0.71, NOfM(2, 4), NOfM(4, 8)]


def layer(seed=0, rows=5, inputs=24, tokens=200):
    """A weight [rows, inputs], correlated inputs X [inputs, tokens], and their Hessian."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(inputs, inputs)) @ rng.normal(size=(inputs, tokens)) + 0.3 * rng.normal(size=(inputs, tokens))
    weight, x = torch.tensor(rng.normal(size=(rows, inputs))), torch.tensor(x)
    return weight, x, 2 * x @ x.T


def error(weight, new, x):
    """||W X - W' X||^2 of each row."""
    return ((weight - new) @ x).square().sum(1)


def naive(weight, hessian, target, block):
    """Columns from left to right; [H^-1] of the remaining columns is computed again for each column."""
    damped = hessian + sparsegpt.DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    inverses = [torch.linalg.inv(damped[j:, j:]) for j in range(len(hessian))]
    diagonal = torch.stack([inverse[0, 0] for inverse in inverses])
    new, mask = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
    rows, inputs = weight.shape
    for j in range(inputs):
        if isinstance(target, NOfM) and j % target.m == 0:
            score = new[:, j : j + target.m] ** 2 / diagonal[j : j + target.m]
            for i in range(rows):
                mask[i, j + score[i].argsort(stable=True)[: target.m - target.n]] = True
        elif not isinstance(target, NOfM) and j % block == 0:
            end = min(j + block, inputs)
            count = int(rows * end * target + 1e-9) - int(rows * j * target + 1e-9)
            score = (new[:, j:end] ** 2 / diagonal[j:end]).flatten()
            chosen = score.argsort(stable=True)[:count]
            mask[chosen // (end - j), j + chosen % (end - j)] = True
        for i in range(rows):
            if mask[i, j]:
                new[i, j:] -= new[i, j] / inverses[j][0, 0] * inverses[j][0]
                new[i, j] = 0
    return mask, new


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("block", [8, 16, 128])
def test_equals_the_brain_surgeon_with_explicit_inverses(target, block, monkeypatch):
    monkeypatch.setattr(sparsegpt, "BLOCK", block)
    weight, _, hessian = layer()
    mask, new = sparsegpt.prune(weight, hessian, target)
    expected_mask, expected = naive(weight, hessian, target, block)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(new, expected, atol=1e-6, rtol=0)


def test_the_factor_is_that_of_the_inverse():
    _, _, hessian = layer()
    factor = sparsegpt.inverse_factor(hessian)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ hessian, torch.eye(24, dtype=torch.float64))
    for j in (0, 7, 23):
        np.testing.assert_allclose(factor[j, j] ** 2, torch.linalg.inv(hessian[j:, j:])[0, 0], rtol=1e-9)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_no_row_is_better_than_least_squares_on_its_mask(target, seed):
    weight, x, hessian = layer(seed)
    mask, new = sparsegpt.prune(weight, hessian, target)
    for row, removed, ours in zip(weight, mask, error(weight, new, x), strict=True):
        kept = ~removed
        y = row @ x
        best = torch.linalg.lstsq(x[kept].T, y[:, None]).solution[:, 0]
        assert (y - best @ x[kept]).square().sum() <= ours * (1 + 1e-9)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_outputs_change_less_than_without_update(target, seed):
    """Not a theorem: the choice from left to right is not optimal for a short row with nearly collinear inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(64, 8)) @ rng.normal(size=(8, 400)) + 2 * rng.normal(size=(64, 400))
    x = torch.tensor(x * rng.exponential(size=(64, 1)))
    weight = torch.tensor(rng.normal(size=(32, 64)))
    _, new = sparsegpt.prune(weight, 2 * x @ x.T, target)
    ours = error(weight, new, x)
    for score in (metrics.magnitude(weight), metrics.wanda(weight, x.square().sum(1))):
        mask = metrics.by_group(score, target) if isinstance(target, NOfM) else metrics.by_row(score, target)
        other = error(weight, weight.masked_fill(mask, 0), x)
        assert ours.sum() < other.sum()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_removes_the_exact_number(target, monkeypatch):
    monkeypatch.setattr(sparsegpt, "BLOCK", 16)
    weight, _, hessian = layer(rows=7, inputs=40)
    mask, new = sparsegpt.prune(weight, hessian, target)
    assert not new[mask].any()
    if isinstance(target, NOfM):
        assert (mask.view(7, -1, target.m).sum(2) == target.m - target.n).all()
    else:
        assert int(mask.sum()) == int(280 * target + 1e-9)


def test_changes_neither_argument():
    weight, _, hessian = layer()
    before = weight.clone(), hessian.clone()
    sparsegpt.prune(weight, hessian, 0.5)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_inputs_that_are_never_active_go_first():
    weight, x, _ = layer()
    x[3] = 0
    mask, new = sparsegpt.prune(weight, 2 * x @ x.T, 0.5)
    assert mask[:, 3].all()
    assert torch.isfinite(new).all()
    few, new = sparsegpt.prune(weight, 2 * x @ x.T, 0.01)
    assert int(few.sum()) == 1
    assert not new[:, 3].any()


def test_float32_gives_nearly_the_same():
    weight, _, hessian = layer(rows=16)
    mask, new = sparsegpt.prune(weight, hessian, 0.5)
    mask32, new32 = sparsegpt.prune(weight.float(), hessian.float(), 0.5)
    assert new32.dtype == torch.float32
    assert torch.equal(mask, mask32)
    torch.testing.assert_close(new32.double(), new, atol=1e-4, rtol=1e-4)


def test_a_hessian_that_is_not_finite_is_refused():
    weight, _, hessian = layer()
    hessian[2, 2] = torch.nan
    with pytest.raises(InputError, match="not positive definite"):
        sparsegpt.prune(weight, hessian, 0.5)


def test_groups_must_fill_the_inputs():
    with pytest.raises(InputError, match="multiple of 16"):
        sparsegpt.prune(*layer()[::2], NOfM(8, 16))
