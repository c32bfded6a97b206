"""CAA against vectors and choices computed by plain runs."""

import json

import pytest

from tasks.comparison.caa import MULTIPLIERS, caa
from tests.comparison.test_steering import LAYERS, assert_answers, fit_data, plain_answers, plain_differences, rank
from tests.tiny import FAMILIES, MIXTURES


def plain(given, vectors, layer, multiplier):
    edits = {layer: lambda x: x + multiplier * vectors[layer]}
    return plain_answers(given.loaded.model, "layers", edits, given.selection_rows.encoded, prompt_only=False)


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_the_chosen_vector_is_added_where_the_answer_is_read(family):
    given = fit_data(family)
    fitted = caa(given)
    vectors = plain_differences(given.loaded.model, "layers", given.examples)
    with fitted.applied() as answer:
        answers = answer(given.selection_rows.encoded)
    assert_answers(answers, plain(given, vectors, fitted.settings["layer"], fitted.settings["multiplier"]))


def test_layer_and_multiplier_are_what_trying_all_of_them_finds():
    given = fit_data()
    vectors = plain_differences(given.loaded.model, "layers", given.examples)
    grid = [(layer, multiplier) for layer in range(LAYERS) for multiplier in MULTIPLIERS]
    ranks = [rank(plain(given, vectors, *cell), given.selection_rows.gold) for cell in grid]
    layer, multiplier = grid[ranks.index(max(ranks))]
    assert json.loads(json.dumps(caa(given).settings)) == {
        "layer": layer, "multiplier": multiplier, "accuracy when chosen": max(ranks)[0]
    }  # fmt: skip
