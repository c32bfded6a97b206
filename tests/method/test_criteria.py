"""Selection criteria against plain loops over pairs, and on surfaces with a known right choice."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.method import criteria
from tasks.method.criteria import CRITERIA, Seen, choose_index, mutual_information, normalised, ranked_by
from tasks.method.options import Search
from tasks.method.pairs import UNPRUNED
from tasks.method.recipe import choose

LAYERS, FRACTIONS = 4, 3


def seen(seed, rows=10, others=30, options=3):
    draws = np.random.default_rng(seed)
    logprobs = normalised(3 * draws.normal(size=(1 + LAYERS * FRACTIONS, others, options)))
    return Seen(logprobs[:, :rows], draws.integers(options, size=rows), logprobs, FRACTIONS)


def plain_value(name, s, model):
    """The first key of a criterion for one model, row by row."""
    labeled, gold = s.labeled[model], s.gold
    hits = [int(row.tolist().index(max(row)) == g) for row, g in zip(labeled, gold, strict=True)]
    if name == "gold_logprob":
        return sum(row[g] for row, g in zip(labeled, gold, strict=True)) / len(gold)
    if name == "mutual_information":
        answers = [[math.exp(value) for value in row] for row in s.unlabeled[model]]
        mean = [sum(column) / len(answers) for column in zip(*answers, strict=True)]
        return entropy(mean) - sum(map(entropy, answers)) / len(answers)
    if name == "prior_corrected":
        answers = np.exp(s.unlabeled[model])
        corrected = np.exp(labeled) / answers.mean(0)
        return float(np.mean([row.argmax() == g for row, g in zip(corrected, gold, strict=True)]))
    if name == "halves":
        return min(sum(hits[:5]) / 5, sum(hits[5:]) / (len(hits) - 5))
    if name == "smoothed":
        layer, fraction = divmod(model - 1, FRACTIONS)
        near = [
            plain_value("paper", s, 1 + a * FRACTIONS + b)
            for a in range(max(0, layer - 1), min(LAYERS, layer + 2))
            for b in range(max(0, fraction - 1), min(FRACTIONS, fraction + 2))
        ]
        return sum(near) / len(near)
    return sum(hits) / len(hits)


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p)


@pytest.mark.parametrize(
    "name", ["paper", "gold_logprob", "smoothed", "mutual_information", "prior_corrected", "halves"]
)
@given(seed=st.integers(0, 10**6))
def test_the_choice_has_the_largest_value(name, seed):
    s = seen(seed)
    values = [plain_value(name, s, model) for model in range(1, 1 + LAYERS * FRACTIONS)]
    keys, _ = CRITERIA[name](s)
    assert next(iter(keys.values())) == pytest.approx(values, abs=1e-9)
    assert values[choose_index(s, name) - 1] == pytest.approx(max(values))


@pytest.mark.parametrize("name", CRITERIA)
@given(seed=st.integers(0, 10**6))
def test_a_search_chooses_what_the_comparison_of_criteria_chooses(name, seed):
    s = seen(seed)
    pairs = [(UNPRUNED, 0.0)]
    pairs += [(layer, (1 + step) / 10) for layer in range(LAYERS) for step in range(FRACTIONS)]
    grid = pd.DataFrame(pairs, columns=["layer", "fraction"]).assign(accuracy=s.accuracy, margin=s.margin)
    grid["logprobs"], other = pd.Series(list(s.labeled), dtype=object), grid.copy()
    other["logprobs"] = pd.Series(list(s.unlabeled), dtype=object)
    row, trail = choose(ranked_by(name, grid, other, s.gold))
    assert pairs[choose_index(s, name)] == (row["layer"], row["fraction"])
    assert trail[-1].tied == 1


def test_the_settings_offer_every_criterion_and_say_what_it_reads():
    offered = get_args(Search.model_fields["criterion"].annotation)
    assert sorted(offered) == sorted(["exact_match", *CRITERIA])
    s = seen(0)
    nothing = np.full_like(s.unlabeled, np.nan)
    for name in CRITERIA:
        search = Search(criterion=name)
        blind = choose_index(replace(s, unlabeled=nothing), name), choose_index(replace(s, gold=s.gold * 0), name)
        assert search.reads_unlabeled or blind[0] == choose_index(s, name)
        assert search.reads_labels or blind[1] == choose_index(s, name)


@pytest.mark.parametrize("strategy", ["coarse_to_fine", "dropping"])
def test_a_strategy_that_goes_by_accuracy_takes_no_other_criterion(strategy):
    with pytest.raises(
        ValueError, match=f"criterion: {strategy} is based on accuracy, so it must be paper or exact_match"
    ):
        Search(strategy=strategy, criterion="halves")
    assert Search(strategy=strategy, criterion="exact_match").criterion == "exact_match"


@given(seed=st.integers(0, 10**6))
def test_one_standard_error_is_the_smallest_fraction_that_is_about_as_accurate(seed):
    s = seen(seed)
    accuracy = s.accuracy[1:]
    limit = accuracy.max() - math.sqrt(accuracy.max() * (1 - accuracy.max()) / 10)
    steps = [index % FRACTIONS for index, value in enumerate(accuracy) if value >= limit - 1e-12]
    chosen = choose_index(s, "one_standard_error") - 1
    assert accuracy[chosen] >= limit - 1e-12
    assert chosen % FRACTIONS == min(steps)
    informed = choose_index(s, "information_and_labels") - 1
    close = [index for index, value in enumerate(accuracy) if value >= limit - 1e-12]
    assert s.information[1 + informed] == pytest.approx(max(s.information[1 + index] for index in close))


@pytest.mark.parametrize("name", CRITERIA)
def test_equal_pairs_leave_the_smallest_fraction_of_the_lowest_layer(name):
    one = normalised(np.random.default_rng(0).normal(size=(30, 3)))
    logprobs = np.broadcast_to(one, (1 + LAYERS * FRACTIONS, 30, 3))
    s = Seen(logprobs[:, :10], np.zeros(10, dtype=np.int64), logprobs, FRACTIONS)
    assert choose_index(s, name) == 1
    assert choose_index(s, name, abstain=True) == 0, "no better than the unpruned model"


@pytest.mark.parametrize("name", CRITERIA)
def test_a_pair_that_separates_what_the_model_does_not_is_found_by_all(name):
    gold = np.arange(40) % 2
    constant, separating = np.array([[0.6, 0.4]] * 40), np.where(gold[:, None] == [0, 1], 0.9, 0.1)
    models = [constant] * (1 + LAYERS * FRACTIONS)
    models[5] = separating
    logprobs = np.log(np.stack(models))
    s = Seen(logprobs[:, :10], gold[:10], logprobs, FRACTIONS)
    if name != "smoothed":  # it uses the neighbours, too
        assert choose_index(s, name) == choose_index(s, name, abstain=True) == 5
    assert choose_index(s, name) > 0


def test_two_rows_more_are_needed_not_one():
    right, wrong = [math.log(0.9), math.log(0.1)], [math.log(0.1), math.log(0.9)]
    for more, index in ((1, 0), (2, 1)):
        base = [right] * 5 + [wrong] * 5
        pair = [right] * (5 + more) + [wrong] * (5 - more)
        logprobs = np.array([base, pair])
        s = Seen(logprobs, np.zeros(10, dtype=np.int64), logprobs, 1)
        assert choose_index(s, "paper", abstain=True) == index


def test_rows_with_fewer_options_are_padded():
    logprobs = normalised([[[0.0, -1.0, -np.inf], [0.0, -2.0, -1.0]]])
    assert np.exp(logprobs).sum(-1) == pytest.approx(1)
    assert np.isfinite(mutual_information(logprobs)).all()
    assert criteria.margins(logprobs, np.array([0, 0]))[0] == pytest.approx([1, 1])
    corrected = criteria.prior_corrected(logprobs, logprobs)
    assert np.isneginf(corrected[0, 0, 2])
    assert np.exp(corrected).sum(-1) == pytest.approx(1)


def test_information_is_zero_for_constant_answers_and_one_bit_for_certain_ones():
    certain = np.log(np.array([[[1 - 1e-12, 1e-12], [1e-12, 1 - 1e-12]]]))
    constant = np.log(np.array([[[0.7, 0.3], [0.7, 0.3]]]))
    assert mutual_information(certain)[0] == pytest.approx(math.log(2), abs=1e-9)
    assert mutual_information(constant)[0] == pytest.approx(0, abs=1e-12)
