"""Statistics against closed forms and against explicit definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.evidence.statistics import holm, mcnemar, paired_interval, spearman, standard_error


@pytest.mark.parametrize(
    ("accuracy", "n", "expected"), [(0.5, 100, 0.05), (0.8, 400, 0.02), (0.0, 10, 0.0), (1.0, 10, 0.0), (0.9, 9, 0.1)]
)
def test_standard_error(accuracy: float, n: int, expected: float) -> None:
    assert standard_error(accuracy, n) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("accuracy", "n"), [(0.5, 0), (1.1, 10), (-0.1, 10), (math.nan, 10)])
def test_standard_error_refuses_what_has_none(accuracy: float, n: int) -> None:
    with pytest.raises(ValueError, match="no standard error"):
        standard_error(accuracy, n)


def pairs(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


def test_mcnemar_by_hand() -> None:
    """b = 5, c = 1: p = 2 P(X >= 5) with X ~ Binomial(6, 1/2) = 2 (6 + 1) / 64."""
    result = mcnemar(*pairs(10, 5, 1, 4))
    assert result == {
        "difference": pytest.approx(0.2),
        "stderr": pytest.approx(math.sqrt(6 - 16 / 20) / 20),
        "interval": list(paired_interval(10, 5, 1, 4)),
        "only_first": 5,
        "only_second": 1,
        "p": pytest.approx(14 / 64),
    }


@pytest.mark.parametrize(("b", "c", "p"), [(0, 0, 1.0), (3, 3, 1.0), (1, 0, 1.0), (10, 0, 2 / 1024), (0, 10, 2 / 1024)])
def test_mcnemar_p(b: int, c: int, p: float) -> None:
    assert mcnemar(*pairs(7, b, c, 7))["p"] == pytest.approx(p)


def wilson(k: int, n: int) -> tuple[float, float]:
    """The ends by the formula, with z = Phi^-1(0.975)."""
    z, p = 1.959963984540054, k / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (p + z * z / (2 * n) - half) / (1 + z * z / n), (p + z * z / (2 * n) + half) / (1 + z * z / n)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((14, 5, 0, 22), (0.0115, 0.2265)),  # Altman et al., Statistics with Confidence, table 6.2
        ((1, 1, 7, 12), (-0.5069, -0.0256)),  # Bentur et al. 2009, the example of R's contingencytables
    ],
)
def test_paired_interval_of_known_tables(table: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    """Computed once with the formulas of `confIntPairedProportion` in the R package biostatUZH, not with our code."""
    assert paired_interval(*table) == pytest.approx(expected, abs=5e-5)


def test_paired_interval_joins_two_wilson_intervals_by_phi() -> None:
    """a d - b c = 30 * 20 - 8 * 2 = 584, minus n / 2 = 30, divided by sqrt(38 * 22 * 32 * 28)."""
    phi = (584 - 30) / math.sqrt(38 * 22 * 32 * 28)
    (l1, u1), (l2, u2) = wilson(38, 60), wilson(32, 60)
    p, q = 38 / 60, 32 / 60
    low = 0.1 - math.sqrt((p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2)
    high = 0.1 + math.sqrt((u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2)
    assert paired_interval(30, 8, 2, 20) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_paired_interval_holds_the_difference_and_mirrors(table: tuple[int, int, int, int]) -> None:
    both, first, second, neither = table
    low, high = paired_interval(both, first, second, neither)
    assert low + 1e-12 >= -1
    assert high <= 1 + 1e-12
    assert low < (first - second) / sum(table) + 1e-12
    assert (first - second) / sum(table) < high + 1e-12
    assert high - low > 0  # also if the two never disagree
    assert paired_interval(both, second, first, neither) == (pytest.approx(-high), pytest.approx(-low))


def test_no_rows_no_interval() -> None:
    with pytest.raises(ValueError, match="no rows"):
        paired_interval(0, 0, 0, 0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_paired_difference_and_is_symmetric(rows: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(side) for side in zip(*rows, strict=True))
    result, mirrored = mcnemar(first, second), mcnemar(second, first)
    delta = first.astype(float) - second.astype(float)
    assert result["difference"] == pytest.approx(delta.mean(), abs=1e-12)
    assert result["stderr"] == pytest.approx(delta.std() / math.sqrt(delta.size), abs=1e-12)
    assert mirrored["difference"] == pytest.approx(-result["difference"])
    assert (mirrored["p"], mirrored["stderr"]) == pytest.approx((result["p"], result["stderr"]))
    assert 0 < result["p"] <= 1


def test_mcnemar_needs_the_same_rows() -> None:
    with pytest.raises(ValueError, match="same rows"):
        mcnemar(np.array([True]), np.array([True, False]))
    with pytest.raises(ValueError, match="same rows"):
        mcnemar(np.array([], dtype=bool), np.array([], dtype=bool))


def test_spearman_on_known_ranks() -> None:
    assert spearman([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])[0] == pytest.approx(1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = (0, 1, -1, 1, -1)
    assert spearman([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])[0] == pytest.approx(1 - 6 * 4 / 120)


def test_spearman_ties_share_their_mean_rank() -> None:
    """Spearman is Pearson over mean ranks, and ten examples tie almost everything."""
    a, b = [0.5, 0.5, 0.7, 0.9], [0.1, 0.2, 0.2, 0.3]
    expected = np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]
    assert spearman(a, b)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("a", "b"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([1, 2], [1, 2]), ([], [])])
def test_spearman_of_no_ranking_is_nan(a: list[float], b: list[float]) -> None:
    assert all(math.isnan(value) for value in spearman(a, b))


def test_holm_rejects_what_the_step_down_procedure_rejects():
    ps = [0.01, 0.04, 0.03, 0.005]  # 4 x 0.005, 3 x 0.01, 2 x 0.03, and at least the one before
    assert holm(ps) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(0)
    for _ in range(50):
        ps = rng.uniform(size=5) ** 3
        rejected = set()
        for rank, index in enumerate(np.argsort(ps)):
            if ps[index] > 0.05 / (5 - rank):
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(holm(ps) <= 0.05).tolist()) == rejected
