"""Silenced neurons against zeroed weights, and the data that the controls may use."""

import copy

import numpy as np
import pytest

from tasks.comparison.silencing import pruned, random, random_searched
from tasks.comparison.system import Fitted, most_accurate, unedited
from tasks.method.options import Search
from tasks.method.recipe import AdaptationResult, Recipe
from tests.comparison.fit_data import assert_untouched, fit_data, state
from tests.method.test_grid import naive
from tests.tiny import MIXTURES, zero_rows


def recipe(d_ff: int) -> Recipe:
    return Recipe(
        model="tiny", benchmark="reviews", base_sha256="0" * 64, layer=1, fraction=0.25, layers=4, d_ff=d_ff,
        neurons=list(range(0, d_ff, 4)), trail=[],
        adaptation=AdaptationResult(n=6, accuracy=1, margin=1, base_accuracy=0, base_margin=0),
    )  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "phi3", *MIXTURES])
def test_pruned_answers_like_the_model_with_zeroed_rows(family):
    given, test = fit_data(family)
    of = recipe(given.stack.d_ff)
    before = state(given.loaded.model)
    with pruned(of, 6)(given).applied() as answer:
        answers = answer(test.encoded)
    assert_untouched(given.loaded.model, before)
    model = copy.deepcopy(given.loaded.model)
    zero_rows(model, of.layer, of.neurons)
    for row, found in zip(test.encoded, answers.logprobs, strict=True):
        assert found[0] == pytest.approx(naive(model, row), abs=1e-4)


def test_random_takes_as_many_of_the_same_layer_and_another_seed_takes_others():
    given, test = fit_data()
    of = recipe(given.stack.d_ff)
    first, again, other = (random(of, 6)(type(given)(**vars(given) | {"seed": seed})) for seed in (0, 0, 1))
    assert first.settings == {"layer": 1, "neurons": len(of.neurons)}

    def logprobs(fitted):
        with fitted.applied() as answer:
            return np.stack([row[0] for row in answer(test.encoded).logprobs])

    assert (logprobs(first) == logprobs(again)).all()
    assert (logprobs(first) != logprobs(other)).any()


def test_random_searched_chooses_by_the_examples_alone():
    given, _ = fit_data()
    fractions = [0.1, 0.3]
    fitted = random_searched(Search(fractions=fractions))(given)
    width, layers = given.stack.d_ff, len(given.stack)
    order = np.random.default_rng(given.seed)
    scores = [order.permutation(width) for _ in range(layers)]
    best = None
    for layer in range(layers):
        for fraction in fractions:
            model = copy.deepcopy(given.loaded.model)
            zero_rows(model, layer, np.argsort(-scores[layer], kind="stable")[: int(fraction * width + 0.5)])
            found = [naive(model, row) for row in given.examples.encoded]
            right = np.mean([v.argmax() == g for v, g in zip(found, given.examples.gold, strict=True)])
            margin = np.mean([v[g] - v[1 - g] for v, g in zip(found, given.examples.gold, strict=True)])
            rank = (right, round(float(margin), 4), -fraction, -layer)
            if best is None or rank > best[0]:
                best = rank, layer, fraction
    assert (fitted.settings["layer"], fitted.settings["fraction"]) == best[1:]


def test_the_most_accurate_candidate_is_taken_and_of_equal_ones_the_first():
    given, _ = fit_data()
    rows = given.examples
    candidates = [random(recipe(given.stack.d_ff), 6)(type(given)(**vars(given) | {"seed": s})) for s in range(5)]
    ranks = []
    for candidate in candidates:
        with candidate.applied() as answer:
            answers = answer(rows.encoded)
        accuracy = float(np.mean(answers.predicted()[0] == rows.gold))
        ranks.append((accuracy, float(answers.margins(rows.gold)[0].mean())))
    best = candidates[ranks.index(max(ranks))]
    found = most_accurate(candidates, rows)
    assert found.applied is best.applied
    assert found.settings["accuracy when chosen"] == max(ranks)[0]
    same = [Fitted(lambda: unedited(given.stack), 0, 0, {"number": i}) for i in range(3)]
    assert most_accurate(same, rows).settings["number"] == 0
    with pytest.raises(ValueError, match="no candidate"):
        most_accurate([], rows)
