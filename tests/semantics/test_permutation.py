"""The permutation test on cases whose answer is known, and the halves of the rows."""

import numpy as np
import pytest

from tasks.semantics.permutation import frequency_strata, halves, permutation_test


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


def test_halves_are_all_rows_once_and_other_ones_for_another_seed():
    first, second = halves(9, 0)
    assert (len(first), len(second)) == (4, 5)
    assert sorted([*first, *second]) == list(range(9))
    assert halves(9, 0) == (first, second) != halves(9, 1)
