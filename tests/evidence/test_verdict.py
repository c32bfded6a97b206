"""The sentence that people quote: it must not say more than the numbers do."""

from typing import Any

import pytest

from tasks.evidence.verdict import notes, p_value, percent, signed, trail, verdict


def evaluation(base: float, pruned: float, p: float, random: dict[str, tuple[float, float]]) -> dict[str, Any]:
    difference = pruned - base
    return {
        "n": 400,
        "options": [" no", " yes"],
        "systems": {
            "base": {"accuracy": base, "predicted": [380, 20], "confusion": [[200, 10], [180, 10]]},
            "pruned": {"accuracy": pruned, "predicted": [200, 200], "confusion": [[110, 100], [90, 100]]},
            "random": {
                "accuracy": sum(a for a, _ in random.values()) / len(random),
                "by_seed": {s: a for s, (a, _) in random.items()},
            },
        },
        "comparisons": {
            "pruned_vs_base": {"difference": difference, "stderr": 0.02, "p": p},
            "pruned_vs_random": {s: {"difference": pruned - a, "p": q} for s, (a, q) in random.items()},
        },
    }


PRUNED = {"neurons": list(range(154)), "layer": 3, "fraction": 0.1}


@pytest.mark.parametrize(
    ("base", "pruned", "p", "tone", "says"),
    [
        (0.66, 0.713, 0.01, "better", "raises accuracy from 0.660 to 0.713 on 400 held-out rows"),
        (0.66, 0.600, 0.01, "worse", "lowers accuracy from 0.660 to 0.600"),
        (0.66, 0.670, 0.60, "same", "makes no detectable difference: accuracy is 0.660 before and 0.670 after"),
        (0.66, 0.713, 0.05, "same", "no detectable difference"),  # at the level is not below it
        (0.66, 0.660, 1.00, "same", "paired difference 0.000 ± 0.020, exact McNemar p = 1.00"),
    ],
)
def test_wording_follows_the_test(base: float, pruned: float, p: float, tone: str, says: str) -> None:
    told = verdict(PRUNED, evaluation(base, pruned, p, {"0": (0.6, 0.5)}))
    assert told.tone == tone
    assert says in told.sentence
    assert told.sentence.startswith("Pruning 154 neurons (10 %) of layer 3 ")


@pytest.mark.parametrize(
    ("random", "says"),
    [
        ({"0": (0.637, 0.01)}, "number: 0.637; the pruned model is better."),
        ({"0": (0.71, 0.9)}, "0.710; no detectable difference."),
        ({"0": (0.6, 0.01), "1": (0.64, 0.01)}, "0.620 on average over 2 draws (0.600 to 0.640); the pruned model is"),
        ({"0": (0.6, 0.01), "1": (0.64, 0.01)}, "detectably better than each of them."),
        ({"0": (0.6, 0.01), "1": (0.7, 0.5)}, "detectably better than 1 of the 2."),
        ({"0": (0.7, 0.6), "1": (0.7, 0.5)}, "differs detectably from none of them."),
        ({"0": (0.9, 0.01), "1": (0.6, 0.01), "2": (0.7, 1)}, "detectably better than 1 and worse than 1 of the 3."),
    ],
)
def test_random_control(random: dict[str, tuple[float, float]], says: str) -> None:
    assert says in verdict(PRUNED, evaluation(0.66, 0.713, 0.01, random)).control


def test_a_gain_that_random_neurons_bring_too_is_no_success() -> None:
    told = verdict(PRUNED, evaluation(0.66, 0.713, 0.01, {"0": (0.71, 0.9), "1": (0.72, 0.8)}))
    assert told.headline == "Better than the base, but not than random neurons"
    told = verdict(PRUNED, evaluation(0.66, 0.713, 0.01, {"0": (0.71, 0.9), "1": (0.6, 0.01)}))
    assert told.headline == "Pruning improves this model here"


def test_one_neuron_is_singular() -> None:
    assert (
        "Pruning 1 neuron (10 %)"
        in verdict(PRUNED | {"neurons": [7]}, evaluation(0.6, 0.6, 1, {"0": (0.6, 1)})).sentence
    )


def test_a_leaning_and_a_better_constant_are_said() -> None:
    found = notes(evaluation(0.52, 0.52, 1, {"0": (0.5, 1)}))
    assert found == [
        "The base model answers “no” on 95 % of the rows; the right answer is that on 52.5 %.",
        "Always answering “no” would score 0.525, more than the pruned model.",
    ]


def test_trail_in_words() -> None:
    steps = [("accuracy", 0.9, 5), ("mean gold margin", -0.25, 3), ("smaller fraction", 0.05, 2), ("lower layer", 4, 1)]
    assert trail({"trail": [{"rule": r, "best": b, "tied": t} for r, b, t in steps]}, 240) == [
        "Of 240 pairs, the highest adaptation accuracy is 0.9: 5 pairs are tied.",
        "Of 5 pairs, the highest mean gold margin is −0.250: 3 pairs are tied.",
        "Of 3 pairs, the smallest fraction is 5 %: 2 pairs are tied.",
        "Of 2 pairs, the lowest layer is 4: one pair is left.",
    ]


def test_numbers() -> None:
    assert [signed(v) for v in (0.0534, -0.05, 0.0, -0.0001)] == ["+0.053", "−0.050", "0.000", "0.000"]
    assert [p_value(v) for v in (0.0001, 0.012, 0.5)] == ["p < 0.001", "p = 0.012", "p = 0.50"]
    assert [percent(v) for v in (0.1, 0.125, 1.0)] == ["10 %", "12.5 %", "100 %"]
