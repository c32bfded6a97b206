"""The choice of calibration sequences against all subsets and a plain loop, and their norms against hooks."""

import itertools
import math

import numpy as np
import pytest
import torch

from tasks.models.loading import Loaded
from tasks.runtime.errors import InputError
from tasks.sparsity.calibration import Calibration
from tasks.sparsity.coverage import covering, facility_location, input_norms
from tests.sparsity.test_layers import SEQUENCES, bits
from tests.sparsity.test_layers import inputs_by_hooks as inputs_of_llama
from tests.sparsity.test_ungated import UNGATED, tiny
from tests.tiny import tiny_model, tiny_tokenizer


def value(features, chosen):
    """f(S) by the definition."""
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    return (distance.max() - distance)[:, list(chosen)].max(1).sum()


def by_a_loop(features, count):
    chosen = []
    while len(chosen) < count:
        left = [i for i in range(len(features)) if i not in chosen]
        chosen.append(max(left, key=lambda i: (round(value(features, [*chosen, i]), 9), -i)))
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_greedy_and_near_the_best_of_all_subsets(seed):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((9, 4)) * rng.exponential(size=(9, 1))
    for count in (1, 2, 3, 9):
        chosen = facility_location(features, count)
        assert chosen == by_a_loop(features, count)
        best = max(value(features, subset) for subset in itertools.combinations(range(9), count))
        assert value(features, chosen) >= (1 - 1 / math.e) * best
        if count in (1, 9):
            assert value(features, chosen) == pytest.approx(best)


def test_every_cluster_is_covered_and_of_equal_rows_the_first_is_chosen():
    features = np.repeat([[0.0, 0.0], [10.0, 0.0], [0.0, 30.0]], [4, 3, 2], axis=0)
    assert sorted(facility_location(features, 3)) == [0, 4, 7]
    assert facility_location(np.zeros((3, 2)), 3) == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 4])
def test_more_rows_than_there_are_cannot_be_chosen(count):
    with pytest.raises(ValueError, match=f"{count} of 3 rows"):
        facility_location(np.zeros((3, 2)), count)


def test_norms_are_those_of_a_plain_run():
    model = tiny_model("llama", torch.float32)
    seen = inputs_of_llama(model)
    rms = np.stack(
        [
            np.concatenate([inputs[i].square().mean(0).sqrt().numpy() for inputs in seen.values()])
            for i in range(len(SEQUENCES))
        ]
    )
    found = input_norms(Loaded(model, tiny_tokenizer()), SEQUENCES)
    np.testing.assert_allclose(found, rms / rms.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.mean(0), 1, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(UNGATED))
def test_every_family_whose_weights_are_pruned_has_norms(family):
    """Inputs that are zero in all sequences, as after a ReLU, stay zero; the others have the mean 1."""
    means = input_norms(Loaded(tiny(family), tiny_tokenizer()), SEQUENCES).mean(0)
    assert (np.isclose(means, 1, rtol=1e-4) | (means == 0)).all()
    assert (means > 0).mean() > 0.5


def test_a_repeated_prompt_is_chosen_once_and_the_model_is_untouched():
    model = tiny_model("llama", torch.float32)
    before = bits(model)
    odd = [3] * 30
    pool = Calibration("t", [*[SEQUENCES[0]] * 3, odd, *[SEQUENCES[1]] * 3], 30, 7)
    found = covering(Loaded(model, tiny_tokenizer()), pool, 3)
    assert sorted(found.sequences) == sorted([SEQUENCES[0], odd, SEQUENCES[1]])
    assert (found.name, found.length, found.seed) == ("t", 30, 7)
    assert bits(model) == before


@pytest.mark.parametrize(("count", "told"), [(4, "t has 4 sequences to choose 4 from"), (0, "to choose 0 from")])
def test_a_pool_that_is_no_larger_than_the_choice_is_refused(count, told):
    with pytest.raises(InputError, match=told):
        covering(Loaded(tiny_model("llama"), tiny_tokenizer()), Calibration("t", SEQUENCES, 20, 0), count)


def test_bad_pools_are_refused():
    model = tiny_model("llama", torch.float32)
    loaded = Loaded(model, tiny_tokenizer())
    with pytest.raises(InputError, match="none may be empty"):
        input_norms(loaded, [[1], []])
    with pytest.raises(InputError, match="the model's context has 512"):
        input_norms(loaded, [[1] * 513])
    model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        input_norms(loaded, SEQUENCES)
