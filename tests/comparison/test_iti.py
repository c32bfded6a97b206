"""ITI against probes, directions and choices computed by plain runs."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tasks.comparison import iti as module
from tasks.comparison.iti import iti, probe_accuracies
from tasks.runtime.errors import InputError
from tests.comparison.test_steering import (
    EXAMPLES,
    HEADS,
    LAYERS,
    assert_answers,
    fit_data,
    plain_activation,
    plain_answers,
    rank,
)
from tests.tiny import FAMILIES, MIXTURES

DIM = 8


def pairs(given):
    """(row, whether it is the right option, head outputs [layers, heads, head_dim]) of every option."""
    return [
        (number, option == row.options[gold], plain_activation(given.loaded.model, "heads", [*row.prompt, *option]))
        for number, (row, gold) in enumerate(zip(given.examples.encoded, given.examples.gold, strict=True))
        for option in row.options
    ]


def ranked_heads(given, found):
    halves = np.array_split(np.random.default_rng(given.seed).permutation(len(given.examples.encoded)), 2)
    accuracies = {}
    for layer in range(LAYERS):
        for head in range(HEADS):
            part = slice(head * DIM, (head + 1) * DIM)
            right = 0
            for half in halves:
                seen = [(true, x[layer, part].double().numpy()) for row, true, x in found if row not in half]
                unseen = [(true, x[layer, part].double().numpy()) for row, true, x in found if row in half]
                probe = LogisticRegression(max_iter=1000).fit([x for _, x in seen], [true for true, _ in seen])
                right += sum(probe.predict([x])[0] == true for true, x in unseen)
            accuracies[layer, head] = right / len(found)
    return sorted(accuracies, key=lambda name: -accuracies[name])


def plain(given, found, heads, strength):
    edits = {}
    for layer in {layer for layer, _ in heads}:
        added = torch.zeros(HEADS * DIM)
        for head in [head for other, head in heads if other == layer]:
            part = slice(head * DIM, (head + 1) * DIM)
            true = torch.stack([x[layer, part] for _, right, x in found if right]).mean(0)
            false = torch.stack([x[layer, part] for _, right, x in found if not right]).mean(0)
            theta = (true - false) / (true - false).norm()
            projections = torch.stack([x[layer, part] @ theta for _, _, x in found])
            added[part] = strength * projections.std() * theta
        edits[layer] = lambda x, added=added: x + added
    return plain_answers(given.loaded.model, "heads", edits, given.selection_rows.encoded, prompt_only=False)


@pytest.mark.parametrize("count", [3, 16])  # 16 is more than there are, so all are used
@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_the_best_heads_are_shifted_where_the_answer_is_read(family, count, monkeypatch):
    monkeypatch.setattr(module, "COUNTS", (count,))
    given = fit_data(family)
    fitted = iti(given)
    found = pairs(given)
    heads = ranked_heads(given, found)[:count]
    assert fitted.settings["heads"] == len(heads) == min(count, LAYERS * HEADS)
    with fitted.applied() as answer:
        answers = answer(given.selection_rows.encoded)
    assert_answers(answers, plain(given, found, heads, fitted.settings["strength"]))


def test_count_and_strength_are_what_trying_all_of_them_finds(monkeypatch):
    monkeypatch.setattr(module, "COUNTS", (2, 5, 48))
    given = fit_data()
    found = pairs(given)
    heads = ranked_heads(given, found)
    grid = [(count, strength) for count in (2, 5, len(heads)) for strength in module.STRENGTHS]
    ranks = [rank(plain(given, found, heads[:count], strength), given.selection_rows.gold) for count, strength in grid]
    count, strength = grid[ranks.index(max(ranks))]
    assert json.loads(json.dumps(iti(given).settings)) == {
        "heads": count, "strength": strength, "accuracy when chosen": max(ranks)[0]
    }  # fmt: skip


def test_a_head_that_tells_right_from_wrong_is_found_and_one_that_knows_rows_by_heart_is_not():
    rng = np.random.default_rng(0)
    row, true = np.repeat(np.arange(40), 2), np.tile([True, False], 40)
    outputs = rng.normal(size=(80, 2, 3, 40))
    outputs[:, 1, 2, 0] += 6.0 * true
    outputs[np.arange(80), 0, 1, row] += 9.0 * true  # separable within a row, which says nothing about another row
    accuracies = probe_accuracies(outputs, true, row, seed=0)
    assert accuracies[1, 2] > 0.95
    assert accuracies[0, 1] < 0.75


def test_one_example_is_refused():
    with pytest.raises(InputError, match="examples"):
        iti(fit_data(examples=EXAMPLES[:1]))
