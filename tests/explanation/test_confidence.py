"""Correlations, calibration and the option prior against other computations of the same numbers."""

import numpy as np
import pytest
from scipy import stats

from tasks.evidence.statistics import mcnemar
from tasks.explanation import bias
from tasks.explanation.confidence import calibration, confidences, difference, expected_calibration_error
from tasks.explanation.correlates import option_margins, surface, with_feature, with_label

RNG = np.random.default_rng(0)


def test_correlations_are_those_of_scipy():
    activations, gold = RNG.normal(size=(40, 5)), RNG.integers(2, size=40)
    activations[:, 1] += gold
    activations[:, 2] = 3.0  # a neuron that does not move
    found = with_label(activations, gold)
    assert (found.kind, found.n) == ("pearson", 40)
    for neuron in (0, 1, 3, 4):
        expected = stats.pointbiserialr(gold, activations[:, neuron])
        assert found.r[neuron] == pytest.approx(expected.statistic)
        assert found.p[neuron] == pytest.approx(expected.pvalue)
    assert (found.r[2], found.p[2]) == (0, 1)
    np.testing.assert_allclose(found.q, stats.false_discovery_control(found.p))
    ranked = np.sort(found.p)  # Benjamini and Hochberg by hand
    smallest = min(p * 5 / rank for rank, p in enumerate(ranked, start=1))
    assert found.q.min() == pytest.approx(smallest)


def test_a_label_of_more_values_has_a_correlation_ratio():
    activations, gold = RNG.normal(size=(60, 3)), np.arange(60) % 3
    activations[:, 0] += gold == 1
    found = with_label(activations, gold)
    assert found.kind == "eta"
    for neuron in range(3):
        expected = stats.f_oneway(*(activations[gold == value, neuron] for value in range(3)))
        assert found.p[neuron] == pytest.approx(expected.pvalue)
    halves = np.where(gold == 1, 2, 0)  # two of three options occur: the square of Pearson's r
    assert with_label(activations, halves).r[0] == pytest.approx(abs(stats.pearsonr(activations[:, 0], halves)[0]))


def test_what_does_not_vary_has_no_correlation():
    assert with_feature(RNG.normal(size=(9, 2)), np.ones(9)).r is None
    assert with_label(RNG.normal(size=(9, 2)), np.ones(9, dtype=int)).q is None
    exact = with_feature(np.arange(5.0)[:, None], np.arange(5.0))
    assert exact.r[0] == pytest.approx(1)
    assert exact.p[0] == pytest.approx(0, abs=1e-9)


def test_surface_of_a_text():
    assert surface("It does n't work, and isn’t good: never was. Notable nothing!") == {
        "punctuation": 5,
        "negation": 4,
    }
    assert surface("") == {"punctuation": 0, "negation": 0}


def test_margins_of_two_and_of_more_options():
    assert option_margins([np.array([-1.0, -3.0]), np.array([-2.0, -1.0])]).tolist() == [-2, 1]
    assert option_margins([np.array([-1.0, -3.0, -1.5]), np.array([-2.0, -1.0])]).tolist() == [0.5, 1]


def test_calibration_error_by_hand():
    confidence = np.array([0.55, 0.6, 0.65, 0.95, 1.0])
    right = np.array([True, False, True, True, False])
    # (0.5, 0.6]: 2 rows, accuracy .5, confidence .575; (0.6, 0.7]: 1, 1, .65; (0.9, 1]: 2, .5, .975
    expected = (2 * abs(0.5 - 0.575) + abs(1 - 0.65) + 2 * abs(0.5 - 0.975)) / 5
    assert expected_calibration_error(confidence, right) == pytest.approx(expected)
    found = calibration(confidence, right)
    assert found["ece"] == pytest.approx(expected)
    assert [one["n"] for one in found["bins"]] == [0, 0, 0, 0, 0, 2, 1, 0, 0, 2]
    assert found["bins"][9]["confidence"] == pytest.approx(0.975)
    assert found["bins"][0]["accuracy"] is None
    assert (found["wrong"], found["confidence_when_wrong"]) == (2, pytest.approx(0.8))


def test_confidence_is_the_softmax_over_the_options():
    assert confidences([np.log([0.02, 0.06]), np.log([0.1, 0.2, 0.1])]) == pytest.approx([0.75, 0.5])


def test_the_error_of_a_difference_is_that_of_pairs():
    confidence, right = RNG.uniform(0.5, 1, 200), RNG.random(200) < 0.6
    same = difference((confidence, right), (confidence, right), draws=50)
    assert (same["difference"], same["stderr"]) == (0, 0)
    found = difference((confidence**2, right), (confidence, right), draws=400)
    assert found == difference((confidence**2, right), (confidence, right), draws=400)
    assert 0 < found["stderr"] < 0.1
    assert abs(found["difference"]) > 0


def test_best_threshold_and_area():
    margins, gold = RNG.normal(size=50), RNG.integers(2, size=50)
    margins += gold - 2.0
    at = bias.best_threshold(margins, gold)
    reached = ((margins > at) == gold).mean()
    assert reached == max(((margins > t) == gold).mean() for t in np.linspace(-7, 5, 4001))
    assert bias.best_threshold(np.array([1.0, -1.0]), np.array([1, 0])) == 0
    area = stats.mannwhitneyu(margins[gold == 1], margins[gold == 0]).statistic / (gold.sum() * (1 - gold).sum())
    assert bias.area_under_roc(margins, gold) == pytest.approx(area)
    assert bias.area_under_roc(margins, np.ones(50, dtype=int)) is None


def test_the_systems_of_the_comparison():
    gold = RNG.integers(2, size=60)
    base = [np.array([0.0, m]) for m in RNG.normal(size=60) + gold + 2]
    pruned = [np.array([0.0, m]) for m in RNG.normal(size=60) + 2 * gold - 1]
    priors = [np.log([[0.2, 0.8], [0.6, 0.4]])] * 60
    found = bias.compare(base, pruned, priors, gold)
    systems = found["systems"]
    assert [name for name, one in systems.items() if one["uses_test_labels"]] == [
        "base + best threshold",
        "pruned + best threshold",
    ]
    corrected = np.array([int(row[1] - np.log(0.8) > row[0] - np.log(0.2)) for row in base])
    assert systems["base + contextual calibration"]["accuracy"] == (corrected == gold).mean()
    assert systems["base + contextual calibration"]["predicted"] == np.bincount(corrected, minlength=2).tolist()
    assert systems["base"]["accuracy"] <= systems["base + best threshold"]["accuracy"]
    [pair] = [p for p in found["comparisons"] if (p["first"], p["second"]) == ("pruned", "base")]
    right = [np.array([row.argmax() for row in rows]) == gold for rows in (pruned, base)]
    assert pair == {"first": "pruned", "second": "base"} | mcnemar(*right)


def test_more_options_have_no_threshold_and_a_prompt_may_have_no_prior():
    rows = [RNG.normal(size=3) for _ in range(9)]
    found = bias.compare(rows, rows, None, np.arange(9) % 3)
    assert list(found["systems"]) == ["base", "pruned"]
    assert "thresholds" not in found
    assert [(p["first"], p["second"]) for p in found["comparisons"]] == [("pruned", "base")]
