"""The tie-break with its trail, and invalid recipes."""

import json

import pandas as pd
import pytest

from tasks.method.recipe import choose, read_recipe
from tasks.runtime.errors import InputError

GOOD = {
    "format": 1,
    "model": "m",
    "benchmark": "b",
    "base_sha256": "0" * 64,
    "projection": "gate_proj",
    "layer": 1,
    "fraction": 0.1,
    "layers": 2,
    "d_ff": 10,
    "neurons": [4],
    "adaptation": {"n": 10, "accuracy": 0.9, "margin": 0.1, "base_accuracy": 0.5, "base_margin": 0.0},
    "trail": [{"rule": "accuracy", "best": 0.9, "tied": 1}],
}


def frame(*rows):
    columns = ["layer", "fraction", "neurons", "accuracy", "margin"]
    return pd.DataFrame([(-1, 0.0, 0, 1.0, 9.0), *rows], columns=columns)


@pytest.mark.parametrize(
    ("rows", "chosen", "trail"),
    [
        ([(0, 0.1, 1, 0.9, 0.0), (1, 0.1, 1, 0.8, 5.0)], (0, 0.1), [1]),
        ([(0, 0.1, 1, 0.9, 0.0), (1, 0.2, 2, 0.9, 5.0)], (1, 0.2), [2, 1]),
        ([(0, 0.2, 2, 0.9, 5.0), (1, 0.1, 1, 0.9, 5.0)], (1, 0.1), [2, 2, 1]),
        ([(1, 0.1, 1, 0.9, 5.0), (0, 0.1, 1, 0.9, 5.0)], (0, 0.1), [2, 2, 2, 1]),
    ],
    ids=["accuracy", "margin", "fraction", "layer"],
)
def test_tie_break(rows, chosen, trail):
    row, steps = choose(frame(*rows))
    assert (row["layer"], row["fraction"]) == chosen
    assert (type(row["layer"]), type(row["neurons"])) == (int, int)
    assert [step.tied for step in steps] == trail
    rules = ["accuracy", "mean gold margin", "smaller fraction", "lower layer"]
    assert [step.rule for step in steps] == rules[: len(trail)]


def test_round_trip(tmp_path):
    path = tmp_path / "pruned.json"
    path.write_text(json.dumps(GOOD))
    assert read_recipe(path).model_dump() == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"layer": 2}, "layer 2 of a model with 2 layers"),
        ({"layer": -1}, "layer: "),
        ({"fraction": 1.0}, "fraction: "),
        ({"neurons": [4, 3]}, "neurons must be ascending"),
        ({"neurons": [3, 3]}, "without repeats"),
        ({"neurons": [10]}, "from 0 to 9"),
        ({"neurons": ["3"]}, "neurons.0: "),
        ({"base_sha256": "../etc"}, "base_sha256: "),
        ({"projection": "q_proj"}, "projection: "),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "pruned.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(InputError, match=message) as error:
        read_recipe(path)
    assert "\n" not in str(error.value)


def test_what_is_no_json_or_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_recipe(tmp_path / "pruned.json")
    (tmp_path / "pruned.json").write_text("{")
    with pytest.raises(InputError, match="Invalid JSON"):
        read_recipe(tmp_path / "pruned.json")
