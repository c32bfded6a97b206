"""Algorithm 1 in memory: the same bytes as the steps, and recipes that are applied and undone in the weights."""

import copy
import json
import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.comparison.steering import mlp_activations, mlp_outputs
from tasks.method.algorithm import adapt
from tasks.method.criteria import CRITERIA
from tasks.method.options import Attribution, Search
from tasks.method.recipe import Recipe
from tasks.method.silence import Neurons, silence, silenced
from tasks.models.projections import PROJECTIONS
from tasks.models.stack import DecoderStack
from tasks.models.sweep import logits_without
from tasks.runtime.errors import InputError
from tests.comparison.fit_data import assert_untouched, fit_data, state
from tests.tiny import (
    ALL,
    FAMILIES,
    MIXTURES,
    UNGATED,
    row_tensors,
    rows,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
    zero_rows,
)

EXAMPLES = [
    {"prompt": f"a {word} film {number} :", "options": [" bad", " good"], "gold": number % 2}
    for number, word in enumerate(["warm", "dull", "fine", "long", "cold", "short"])
]
UNLABELED = [
    {"prompt": f"a {word} film {number} :", "options": [" bad", " good"]}
    for number, word in enumerate(["warm", "dull", "fine", "long", "cold", "short", "new", "old"])
]
QUICK = Attribution(quadrature="riemann_right", steps=2)


@pytest.mark.parametrize("strategy", ["exhaustive", "coarse_to_fine", "layer_subset", "dropping"])
def test_the_model_is_left_as_it_was(strategy):
    given, _ = fit_data()
    before = state(given.loaded.model)
    search = Search(strategy=strategy, fractions=[0.1, 0.3])
    found = adapt(given.loaded.model, given.loaded.tokenizer, EXAMPLES, attribution=QUICK, search=search)
    assert_untouched(given.loaded.model, before)
    assert found.recipe.adaptation.n == len(EXAMPLES)
    order = np.argsort(-found.scores.ranked[found.recipe.layer], kind="stable")
    assert found.recipe.neurons == sorted(order[: int(found.recipe.fraction * 48 + 0.5)].tolist())


@pytest.mark.parametrize("criterion", ["exact_match", *CRITERIA])
def test_every_criterion_chooses_a_pair_and_says_why(criterion):
    given, _ = fit_data()
    search = Search(fractions=[0.1, 0.3], criterion=criterion)
    adapted = partial(adapt, given.loaded.model, given.loaded.tokenizer, EXAMPLES, attribution=QUICK, search=search)
    found = adapted(unlabeled=UNLABELED)
    key = found.grid.attrs["keys"][0]
    best = found.grid[found.grid.layer >= 0][key].max()
    row = found.grid[(found.grid.layer == found.recipe.layer) & (found.grid.fraction == found.recipe.fraction)]
    assert row[key].item() == best == found.recipe.trail[0].best
    assert "logprobs" not in found.grid
    other = adapted(unlabeled=UNLABELED[:2]).grid
    assert search.reads_unlabeled != other.equals(found.grid), "it reads the unlabeled rows, or it does not"


def test_mutual_information_needs_no_labels_and_the_others_do():
    given, _ = fit_data()
    adapted = partial(adapt, given.loaded.model, given.loaded.tokenizer, attribution=QUICK)
    search = Search(fractions=[0.1, 0.3], criterion="mutual_information")
    labeled, found = (adapted(rows, search=search) for rows in (EXAMPLES, UNLABELED[:6]))
    assert found.recipe.adaptation.model_dump() == {"n": 6} | dict.fromkeys(
        ("accuracy", "margin", "base_accuracy", "base_margin")
    )
    assert (found.recipe.layer, found.recipe.neurons) == (labeled.recipe.layer, labeled.recipe.neurons)
    assert Recipe.model_validate_json(found.recipe.model_dump_json(), strict=True) == found.recipe
    for criterion in ("paper", "information_and_labels"):
        with pytest.raises(InputError, match=f"gold: is missing in the examples, and search.criterion {criterion} "):
            adapted(UNLABELED[:6], search=Search(criterion=criterion))


@pytest.mark.parametrize(
    ("family", "projection"),
    [(family, p) for family in ALL for p in PROJECTIONS if p != "up_proj" or family in FAMILIES]
    + [(family, p) for family in MIXTURES for p in PROJECTIONS[:2]],
)
def test_in_flight_and_in_the_weights_give_the_same_logits(family, projection):
    model = tiny_model(family)
    stack = DecoderStack(model)
    before = state(model)
    sequence = [3, 17, 90, 41, 5, 8]
    [packed] = stack.pack([[(sequence, [len(sequence) - 1])]])
    neurons = np.random.default_rng(0).choice(stack.width(projection), 9, replace=False)
    for layer in range(len(stack)):
        [in_flight] = logits_without(stack, stack.clean(packed), layer, [np.sort(neurons)], projection)
        naive = copy.deepcopy(model)
        zero_rows(naive, layer, neurons, projection)
        with silenced(model, Neurons(layer, neurons, projection)):
            in_weights = model(torch.tensor([sequence])).logits[0, -1]
        torch.testing.assert_close(in_weights, naive(torch.tensor([sequence])).logits[0, -1], atol=0, rtol=0)
        torch.testing.assert_close(in_flight[0, 0], in_weights, atol=2e-6, rtol=1e-5)  # Gemma: float32 softmax
    assert_untouched(model, before)


def test_silence_is_undone_bit_for_bit_also_after_an_exception():
    model = tiny_model("phi3")
    before = state(model)
    undo = silence(model, Neurons(1, [0, 5], "up_proj"))
    assert not rows(model, 1, "up_proj")[[0, 5]].any()
    undo()
    assert_untouched(model, before)

    def interrupted():
        with silenced(model, Neurons(0, [1]), Neurons(2, [3])):
            assert not rows(model, 2)[3].any()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_untouched(model, before)


def test_recipes_on_the_same_rows_come_back_too():
    model = tiny_model("llama")
    before = state(model)
    with silenced(model, Neurons(0, [1, 2]), Neurons(0, [2, 3])):
        assert not rows(model, 0)[[1, 2, 3]].any()
    assert_untouched(model, before)


@pytest.mark.parametrize("change", [{"layers": 4}, {"d_ff": 64}, {"layer": 3, "layers": 4}])
def test_a_recipe_for_a_model_of_another_shape_is_refused(change):
    result = {"n": 6, "accuracy": 1.0, "margin": 1.0, "base_accuracy": 0.5, "base_margin": 0.1}
    of = {"model": "m", "benchmark": "b", "layer": 1, "fraction": 0.1, "layers": 3, "d_ff": 48, "neurons": [1]}
    recipe = Recipe.model_validate(of | {"adaptation": result, "trail": []} | change)
    model = tiny_model("llama")
    before = state(model)
    with pytest.raises(InputError, match=r"^recipe: is for another model"), silenced(model, recipe):
        pass
    assert_untouched(model, before)


def test_the_smallest_fraction_must_have_a_neuron():
    given, _ = fit_data()
    with pytest.raises(InputError, match=r"^search.fractions: 0.001 of 48 neurons is less than half a neuron"):
        adapt(given.stack, tiny_tokenizer(), EXAMPLES, attribution=QUICK, search=Search(fractions=[0.001, 0.1]))


def test_the_program_in_the_readme(tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [program] = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "adapt(" in code]
    assert len(program.splitlines()) <= 13
    save_tiny(tmp_path / "data/models/smollm2-135m-instruct")
    cell = tmp_path / "data/cells/smollm2-135m-instruct/rotten_tomatoes"
    cell.mkdir(parents=True)
    (cell / "samples.jsonl").write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    monkeypatch.chdir(tmp_path)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a program of ten lines leaves its file to be closed
        exec(program, names)
    assert capsys.readouterr().out.startswith("A warm film.")
    assert names["adapted"].scores.values.shape == (3, 48)
    assert len(names["adapted"].grid) == 1 + 3 * 8


def test_gradients_and_training_mode_are_as_before():
    model = tiny_model("llama", torch.float32).train()
    model.lm_head.requires_grad_(True)
    adapt(model, tiny_tokenizer(), EXAMPLES, attribution=QUICK, search=Search(fractions=[0.2]))
    assert all(module.training for module in model.modules())
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["lm_head.weight"]


def test_weights_in_bfloat16_are_refused():
    model = tiny_model("llama", torch.bfloat16)
    with pytest.raises(InputError, match=r"^model: LlamaForCausalLM: is in torch.bfloat16"):
        adapt(model, tiny_tokenizer(), EXAMPLES)


@pytest.mark.parametrize("family", UNGATED)
def test_a_model_without_a_gate_is_adapted_and_its_recipe_silences_rows_and_biases(family):
    model = tiny_model(family, torch.float32)
    stack = DecoderStack(model)
    recipe = adapt(stack, tiny_tokenizer(), EXAMPLES, attribution=Attribution(max_nodes=4)).recipe
    assert (recipe.projection, recipe.layers, recipe.d_ff) == ("gate_proj", 3, 48)
    before = state(model)
    with silenced(model, recipe):
        for tensor in row_tensors(model, recipe.layer):
            assert ((tensor.reshape(48, -1) == 0).all(1).nonzero()[:, 0]).tolist() == recipe.neurons
    assert_untouched(model, before)


def test_mlps_in_the_decoder_layer_itself_are_refused_as_sites_to_steer():
    stack = DecoderStack(tiny_model("opt"))
    for site in (mlp_activations, mlp_outputs):
        with pytest.raises(InputError, match="OPTForCausalLM: its MLPs are not separate modules and cannot be steered"):
            site(stack)
