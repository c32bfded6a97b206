"""How many neurons a fraction selects, and which ones."""

import numpy as np
import pytest

from tasks.method.neurons import count, prominent_neurons, random_neurons, top_neurons
from tasks.method.scores import as_scores, read_scores


@pytest.mark.parametrize(("fraction", "d_ff", "number"), [(0.05, 1536, 77), (0.4, 1536, 614), (0.5, 5, 3), (0.0, 9, 0)])
def test_count_rounds_half_up(fraction, d_ff, number):
    assert count(fraction, d_ff) == number


def test_top_neurons_have_the_highest_signed_scores_and_ties_go_to_the_lower_index():
    scores = np.array([1.0, -9.0, 3.0, 1.0, 3.0], dtype=np.float32)
    assert top_neurons(scores, 3).tolist() == [2, 4, 0]


@pytest.mark.parametrize(("ranking", "first"), [("signed", [2, 0]), ("absolute", [1, 2])])
def test_the_header_of_the_scores_says_what_counts(tmp_path, ranking, first):
    values = np.array([[1.0, -9.0, 3.0]], dtype=np.float32)
    scores = as_scores(values, "up_proj", 10)
    scores.header["ranking"] = ranking
    (tmp_path / "scores").write_bytes(scores.to_bytes())
    found = read_scores(tmp_path / "scores")
    assert top_neurons(found.ranked[0], 2).tolist() == first
    assert (found.projection, found.header["n"]) == ("up_proj", 10)
    assert found.values.tobytes() == values.tobytes()
    assert found.to_bytes() == scores.to_bytes()


def test_a_fraction_is_its_highest_neurons_ascending():
    assert prominent_neurons(np.array([1.0, 9.0, 3.0, 4.0]), 0.5).tolist() == [1, 3]


def test_smaller_fractions_are_contained_in_larger_ones():
    scores = np.random.default_rng(0).normal(size=100)
    assert set(top_neurons(scores, 5)) < set(top_neurons(scores, 10))


def test_random_neurons_are_seeded_and_distinct():
    first = random_neurons(50, 20, seed=3)
    assert first.tolist() == random_neurons(50, 20, seed=3).tolist() != random_neurons(50, 20, seed=4).tolist()
    assert len(set(first.tolist())) == 20
