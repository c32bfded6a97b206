"""The page of studies: tables over several results."""

import pytest
import yaml

from tasks.evidence.study_pages import STUDIES, by_family
from tasks.evidence.study_tables import table

FAMILIES = {"sentiment": ["reviews"], "inference": ["nli"]}


def record(label, value, **more):
    return {"label": label, "value": value, "more": more}


def result(benchmark, records, model="tiny"):
    return {"model": model, "benchmark": benchmark, "records": records}


def test_calibration_by_family_has_means_and_spreads():
    reviews = result(
        "reviews",
        [
            record("unpruned", 0.5),
            record("magnitude, 50%, none", 0.4, method="magnitude", sparsity=0.5),
            record("wanda, 50%, c4", 0.5, method="wanda", sparsity=0.5),
            record("wanda, 50%, own", 0.75, method="wanda", sparsity=0.5),
            record("DSM pruning, seed 0", 0.6, method="DSM pruning", sparsity=""),
            record("DSM pruning, seed 1", 0.8, method="DSM pruning", sparsity=""),
        ],
    )
    other = result("mine", [record("unpruned", 0.125)])
    inference = result(
        "nli-en", [record("unpruned", 0.25), record("wanda, 50%, c4", 0.5, method="wanda", sparsity=0.5)]
    )
    assert by_family([other, inference, reviews], FAMILIES) == [
        ["", "reviews (sentiment)", "nli-en (inference)", "mine (of no family)"],
        ["unpruned", "0.500", "0.250", "0.125"],
        ["magnitude, 50%", "0.400", "", ""],
        ["wanda, 50%", "0.625, 0.250", "0.500", ""],
        ["DSM pruning", "0.700, 0.200", "", ""],
    ]


def test_two_models_are_told_apart():
    results = [result("reviews", [record("unpruned", 0.5)], model) for model in ("one", "two")]
    assert by_family(results, FAMILIES)[0] == ["", "one, reviews (sentiment)", "two, reviews (sentiment)"]


@pytest.mark.parametrize("family", ["sentiment", "question answering", "similarity and inference", "reasoning"])
def test_every_family_of_the_paper_has_benchmarks(family):
    assert yaml.safe_load(STUDIES.read_text())["calibration"]["families"][family]


@pytest.mark.parametrize(("seconds", "shown"), [(60.52, "60.5"), (1234.5, "1234"), (0.00123, "0.00123"), (3, "3")])
def test_no_number_is_shown_as_a_power_of_ten(seconds, shown):
    row = {"label": "one", "value": 0.5, "stderr": 0.05, "n": 100, "p": None, "more": {"seconds": seconds}}
    assert table({"unit": "accuracy", "records": [row]})[1][-1] == shown
