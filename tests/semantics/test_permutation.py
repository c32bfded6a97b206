"""The permutation tests on cases whose answer is known or that scipy computes, and the halves of the rows."""

import numpy as np
import pytest
import scipy.stats

from tasks.semantics.permutation import frequency_strata, halves, matching_test, permutation_test


def words(seed, count=60):
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 30, count)
    # Frequent words drop more and are chosen more often: only a test within strata is fair.
    chosen = rng.random(count) < counts / 60
    return rng.normal(size=count) + 0.2 * counts, chosen, frequency_strata(counts)


def test_strata_are_powers_of_two():
    assert frequency_strata([1, 2, 3, 4, 7, 8]).tolist() == [0, 1, 1, 2, 2, 3]


def test_a_planted_effect_is_found():
    values, chosen, strata = words(0)
    found = permutation_test(values + 3 * chosen, chosen, strata, permutations=999, seed=1)
    assert found["p"] == 1 / 1000
    assert found["mean"] > found["random"] + 1
    assert found == permutation_test(values + 3 * chosen, chosen, strata, permutations=999, seed=1)
    assert permutation_test(values - 3 * chosen, chosen, strata, permutations=999)["p"] == 1


def test_without_an_effect_p_is_uniform():
    ps = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        strata = rng.integers(0, 3, 40)
        values = rng.normal(size=40) + strata
        chosen = rng.random(40) < 0.1 + 0.2 * strata
        chosen[0] = True
        ps.append(permutation_test(values, chosen, strata, permutations=199, seed=seed)["p"])
    for level in (0.05, 0.2, 0.5, 0.8):
        assert np.mean(np.array(ps) <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 300))


def test_it_is_the_exact_test_of_all_sets():
    values, chosen = np.array([3.0, 1, 2, 0, 9]), np.array([True, False, False, False, True])
    found = permutation_test(values, chosen, np.array([0, 0, 0, 0, 1]), permutations=20000)
    assert found["p"] == pytest.approx(1 / 4, abs=0.02)  # 9 is alone in its stratum; 3 is the largest of four
    assert found["exchangeable"] == 1
    assert found["random"] == pytest.approx((1.5 + 9) / 2, abs=0.02)


def test_nothing_to_exchange_gives_one():
    values = np.array([0.1, 0.2, 0.3])
    found = permutation_test(values, np.ones(3, dtype=bool), np.zeros(3, dtype=np.int64), permutations=99)
    assert found["p"] == 1
    assert found["exchangeable"] == 0
    with pytest.raises(ValueError, match="at least one that is chosen"):
        permutation_test(values, np.zeros(3, dtype=bool), np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize("seed", range(4))
def test_matching_is_the_exact_test_of_all_pairings(seed):
    """One stratum of six words: scipy goes through the 720 pairings."""
    similarity = np.random.default_rng(seed).random((6, 6)) + 0.2 * np.eye(6)
    found = matching_test(similarity, np.zeros(6, dtype=np.int64), permutations=20000)

    def mean(order):
        return similarity[np.arange(6), order.astype(int)].mean()

    exact = scipy.stats.permutation_test(
        (np.arange(6),), mean, permutation_type="pairings", alternative="greater", n_resamples=np.inf
    )
    assert found["mean"] == pytest.approx(exact.statistic)
    assert found["p"] == pytest.approx(exact.pvalue, abs=4 * np.sqrt(exact.pvalue / 20000) + 1e-4)
    assert found["random"] == pytest.approx(exact.null_distribution.mean())
    assert found["exchangeable"] == 6


def test_matching_within_strata_has_the_normal_limit_of_hoeffding():
    """Mean and variance are known (Hoeffding 1951): with many words, p is that of a normal distribution."""
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1, 2], [60, 50, 40])
    similarity = rng.random((150, 150)) + strata[:, None] * (strata[:, None] == strata)
    similarity[np.diag_indices(150)] += 0.03
    expected, variance = 0.0, 0.0
    for stratum in range(3):
        inside = similarity[np.ix_(strata == stratum, strata == stratum)]
        spread = inside - inside.mean(0) - inside.mean(1)[:, None] + inside.mean()
        expected += len(inside) * inside.mean() / 150
        variance += (spread**2).sum() / (len(inside) - 1) / 150**2
    found = matching_test(similarity, strata)
    assert found["random"] == pytest.approx(expected)
    normal = scipy.stats.norm.sf((found["mean"] - expected) / np.sqrt(variance))
    assert 0.01 < normal < 0.5
    assert found["p"] == pytest.approx(normal, abs=0.02)


def test_words_alone_in_their_strata_cannot_be_exchanged():
    found = matching_test(np.eye(3), np.arange(3))
    assert (found["p"], found["mean"], found["random"], found["exchangeable"]) == (1, 1, 1, 0)
    for similarity, strata in ((np.eye(3), np.arange(2)), (np.zeros((0, 0)), np.arange(0))):
        with pytest.raises(ValueError, match="the similarity of each pair"):
            matching_test(similarity, strata)


def test_halves_are_all_rows_once_and_other_ones_for_another_seed():
    first, second = halves(9, 0)
    assert (len(first), len(second)) == (4, 5)
    assert sorted([*first, *second]) == list(range(9))
    assert halves(9, 0) == (first, second) != halves(9, 1)
