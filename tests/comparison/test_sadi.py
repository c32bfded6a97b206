"""SADI against masks, rescaled activations and choices computed by plain runs."""

import json

import pytest
import torch

from tasks.comparison import sadi as module
from tasks.comparison.sadi import sadi_head, sadi_hidden, sadi_neuron, top_elements
from tasks.runtime.errors import InputError
from tests.comparison.test_steering import (
    HEADS,
    assert_answers,
    fit_data,
    plain_answers,
    plain_differences,
    rank,
)
from tests.tiny import FAMILIES, MIXTURES

SYSTEMS = {"heads": sadi_head, "neurons": sadi_neuron, "hidden": sadi_hidden}
COUNTS = {"heads": "HEAD_COUNTS", "neurons": "NEURON_COUNTS", "hidden": "HIDDEN_COUNTS"}


def elements(given, site):
    """(layer, slice of the site's dimensions) of every element, the largest mean difference first."""
    differences = plain_differences(given.loaded.model, site, given.examples)
    size = differences.shape[1] // HEADS if site == "heads" else 1
    found = {}
    for layer, values in enumerate(differences):
        for start in range(0, len(values), size):
            part = slice(start, start + size)
            found[layer, start] = float(values[part].mean()), (layer, part)
    return [element for _, element in sorted(found.values(), key=lambda pair: -pair[0])]


def plain(given, site, chosen, strength):
    def edit(layer, x):
        x = x.clone()
        for other, part in chosen:
            if other == layer:
                x[:, part] += (strength - 1) * x[:, part]
        return x

    edits = {layer: lambda x, layer=layer: edit(layer, x) for layer, _ in chosen}
    return plain_answers(given.loaded.model, site, edits, given.selection_rows.encoded, prompt_only=True)


@pytest.mark.parametrize("family", MIXTURES)
def test_neurons_of_experts_are_refused(family):
    with pytest.raises(InputError, match=r"^model: \w+ForCausalLM: neurons of experts cannot be steered"):
        sadi_neuron(fit_data(family))


@pytest.mark.parametrize(
    ("family", "site"),
    [
        (family, site)
        for family in [*FAMILIES, *MIXTURES]
        for site in SYSTEMS
        if site != "neurons" or family in FAMILIES
    ],
)
def test_the_top_elements_are_multiplied_at_the_last_prompt_token(family, site, monkeypatch):
    number = 20 if family in MIXTURES and site == "hidden" else 7
    monkeypatch.setattr(module, COUNTS[site], (number,))
    given = fit_data(family)
    fitted = SYSTEMS[site](given)
    chosen = elements(given, site)[:number]
    assert len({layer for layer, _ in chosen}) > 1
    with fitted.applied() as answer:
        answers = answer(given.selection_rows.encoded)
    assert_answers(answers, plain(given, site, chosen, fitted.settings["strength"]))


@pytest.mark.parametrize("site", SYSTEMS)
def test_count_and_strength_are_what_trying_all_of_them_finds(site, monkeypatch):
    monkeypatch.setattr(module, "STRENGTHS", (5, 40, 80))
    monkeypatch.setattr(module, "NEURON_STRENGTHS", (5, 40, 80))
    given = fit_data()
    order = elements(given, site)
    counts = [min(count, len(order)) for count in getattr(module, COUNTS[site])]
    grid = [(count, strength) for count in counts for strength in (5, 40, 80)]
    ranks = [rank(plain(given, site, order[:count], strength), given.selection_rows.gold) for count, strength in grid]
    count, strength = grid[ranks.index(max(ranks))]
    assert json.loads(json.dumps(SYSTEMS[site](given).settings)) == {
        "count": count, "strength": strength, "accuracy when chosen": max(ranks)[0]
    }  # fmt: skip


def test_the_mask_is_of_the_largest_signed_differences_of_all_layers_and_the_first_of_equal_ones():
    differences = torch.tensor([[1.0, -9.0, 3.0], [3.0, 2.0, 3.0]])
    assert top_elements(differences, 2).tolist() == [[False, False, True], [True, False, False]]
    assert top_elements(differences, 4).tolist() == [[False, False, True], [True, True, True]]
