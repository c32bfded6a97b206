"""The verdict, which people quote: it must not say more than the numbers do."""

from typing import Any

import pytest

from tasks.evidence.verdict import notes, p_value, percent, signed, trail, verdict

Random = dict[str, tuple[float, float]]  # for each draw its value, and p of the pruned model against it
NO_CHANGE = (0.3, 0.3, 1.0)


def evaluation(
    accuracy: tuple[float, float, float],
    random: Random,
    exact: tuple[float, float, float] = NO_CHANGE,
    random_exact: Random | None = None,
) -> dict[str, Any]:
    """evaluation.json of a base model, a pruned one and random controls; `accuracy` and `exact`: base, pruned and p."""
    random_exact = random_exact or dict.fromkeys(random, (exact[1], 1.0))

    def compared(measure: tuple[float, float, float], draws: Random) -> dict[str, Any]:
        base, pruned, p = measure
        first = {
            "difference": pruned - base,
            "stderr": 0.02,
            "interval": [pruned - base - 0.04, pruned - base + 0.04],
            "p": p,
        }
        return {
            "pruned_vs_base": first,
            "pruned_vs_random": {s: {"difference": pruned - a, "p": q} for s, (a, q) in draws.items()},
        }

    def mean(draws: Random) -> float:
        return sum(a for a, _ in draws.values()) / len(draws)

    return {
        "n": 400,
        "options": [" no", " yes"],
        "systems": {
            "base": {
                "accuracy": accuracy[0], "exact_match": exact[0],
                "predicted": [380, 20], "confusion": [[200, 10], [180, 10]],
            },
            "pruned": {
                "accuracy": accuracy[1], "exact_match": exact[1],
                "predicted": [200, 200], "confusion": [[110, 100], [90, 100]],
            },
            "random": {
                "accuracy": mean(random), "by_seed": {s: a for s, (a, _) in random.items()},
                "exact_match": mean(random_exact), "exact_match_by_seed": {s: a for s, (a, _) in random_exact.items()},
            },
        },
        "comparisons": compared(accuracy, random) | {"exact_match": compared(exact, random_exact)},
    }  # fmt: skip


PRUNED = {"neurons": list(range(154)), "layer": 3, "fraction": 0.1}
DRAW: Random = {"0": (0.6, 0.01)}


@pytest.mark.parametrize(
    ("base", "pruned", "p", "tone", "says"),
    [
        (0.66, 0.713, 0.01, "better", "raises accuracy from 0.660 to 0.713 on 400 held-out rows"),
        (0.66, 0.600, 0.01, "worse", "lowers accuracy from 0.660 to 0.600"),
        (
            0.66,
            0.670,
            0.60,
            "same",
            "does not detectably change accuracy on 400 held-out rows: 0.660 before, ",
        ),
        (0.66, 0.713, 0.05, "same", "does not detectably change accuracy"),  # at the level is not below it
        (0.66, 0.660, 1.00, "same", "difference 0.000, 95 % interval −0.040 to +0.040, exact McNemar p = 1.00)."),
    ],
)
def test_wording_follows_the_test(base: float, pruned: float, p: float, tone: str, says: str) -> None:
    told = verdict(PRUNED, evaluation((base, pruned, p), DRAW))
    assert told.tone == tone
    assert says in told.sentence
    assert told.sentence.startswith("Pruning 154 neurons (10 %) of layer 3 ")
    assert "It does not detectably change exact match: 0.300 before, 0.300 after (paired" in told.sentence


SAME = (0.66, 0.67, 0.6)
UP = (0.01, 0.513, 1e-9)
DOWN = (0.513, 0.01, 1e-9)


@pytest.mark.parametrize(
    ("accuracy", "exact", "tone", "headline"),
    [
        (SAME, NO_CHANGE, "same", "No detectable difference"),
        (SAME, UP, "better", "Pruning improves exact match; accuracy does not change detectably"),
        (UP, UP, "better", "Pruning improves accuracy and exact match"),
        (UP, NO_CHANGE, "better", "Pruning improves accuracy; exact match does not change detectably"),
        (UP, DOWN, "mixed", "Pruning improves accuracy and lowers exact match"),
        (DOWN, UP, "mixed", "Pruning improves exact match and lowers accuracy"),
        (DOWN, DOWN, "worse", "Pruning lowers accuracy and exact match"),
        (SAME, DOWN, "worse", "Pruning lowers exact match; accuracy does not change detectably"),
    ],
)
def test_the_title_tells_both_measures(
    accuracy: tuple[float, float, float], exact: tuple[float, float, float], tone: str, headline: str
) -> None:
    told = verdict(PRUNED, evaluation(accuracy, {"0": (0.1, 0.001)}, exact, {"0": (0.1, 0.001)}))
    assert (told.tone, told.headline) == (tone, headline)


def test_the_sentence_has_exact_match_with_its_test() -> None:
    told = verdict(PRUNED, evaluation(SAME, DRAW, UP))
    assert told.sentence.endswith(
        "It raises exact match from 0.010 to 0.513 (paired difference +0.503, 95 % interval +0.463 to +0.543, "
        "exact McNemar p < 0.001)."
    )


@pytest.mark.parametrize(
    ("random", "says"),
    [
        ({"0": (0.637, 0.01)}, "number: accuracy 0.637; the pruned model is detectably better than them."),
        ({"0": (0.71, 0.9)}, "0.710; the pruned model is not detectably different from them."),
        ({"0": (0.6, 0.01), "1": (0.64, 0.01)}, "0.620 on average over 2 draws (0.600 to 0.640); the pruned model is"),
        ({"0": (0.6, 0.01), "1": (0.64, 0.01)}, "detectably better than each of them."),
        ({"0": (0.6, 0.01), "1": (0.7, 0.5)}, "detectably better than 1 of the 2."),
        ({"0": (0.7, 0.6), "1": (0.7, 0.5)}, "is not detectably different from any of them."),
        ({"0": (0.9, 0.01), "1": (0.6, 0.01), "2": (0.7, 1)}, "detectably better than 1 and worse than 1 of the 3."),
    ],
)
def test_random_control(random: Random, says: str) -> None:
    told = verdict(PRUNED, evaluation((0.66, 0.713, 0.01), random))
    assert says in told.control
    assert "Their exact match: 0.300" in told.control


def test_a_gain_that_random_neurons_bring_too_is_no_success() -> None:
    gain = (0.66, 0.713, 0.01)
    told = verdict(PRUNED, evaluation(gain, {"0": (0.71, 0.9), "1": (0.72, 0.8)}))
    assert told.headline == "Pruning improves accuracy, but no more than random neurons do"
    told = verdict(PRUNED, evaluation(gain, {"0": (0.71, 0.9), "1": (0.6, 0.01)}))
    assert told.headline == "Pruning improves accuracy; exact match does not change detectably"


def test_one_neuron_is_singular() -> None:
    assert "Pruning 1 neuron (10 %)" in verdict(PRUNED | {"neurons": [7]}, evaluation((0.6, 0.6, 1), DRAW)).sentence


def test_a_leaning_and_a_better_constant_are_said() -> None:
    found = notes(evaluation((0.52, 0.52, 1), DRAW))
    assert found == [
        "The base model answers “no” on 95 % of the rows; this is the right answer on 52.5 %.",
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
    steps = [("within one standard error of the best accuracy", 1.0, 9), ("mean gold log-probability", -0.5, 1)]
    assert trail({"trail": [{"rule": r, "best": b, "tied": t} for r, b, t in steps]}, 240) == [
        "Of 240 pairs, the accuracy of some is within one error of the best: 9 pairs are tied.",
        "Of 9 pairs, the highest mean gold log-probability is −0.500: one pair is left.",
    ]


def test_numbers() -> None:
    assert [signed(v) for v in (0.0534, -0.05, 0.0, -0.0001)] == ["+0.053", "−0.050", "0.000", "0.000"]
    assert [p_value(v) for v in (0.0001, 0.012, 0.5)] == ["p < 0.001", "p = 0.012", "p = 0.50"]
    assert [percent(v) for v in (0.1, 0.125, 1.0)] == ["10 %", "12.5 %", "100 %"]
