"""A study searches as its cell does: with each strategy and criterion, the same choice as the steps."""

import numpy as np
import pandas as pd
import pytest
import yaml

from tasks.benchmarks.scoring import answers_without
from tasks.benchmarks.table import exact_matches
from tasks.comparison.system import FitData
from tasks.method.neurons import prominent_neurons
from tasks.method.recipe import choose, read_recipe
from tasks.method.strategies import STRATEGIES
from tasks.pipeline.cell import open_cell
from tasks.pipeline.runs import StudyRun
from tasks.steps.data import store as data
from tasks.steps.model import store as model
from tasks.steps.prune import prune
from tasks.steps.sample import sample
from tasks.steps.score import score
from tasks.steps.search import search
from tasks.studies.context import StudyContext
from tasks.studies.generating import compute as generation
from tasks.studies.systems import systems
from tests.steps.test_steps import write_project

WAYS = {name: {"strategy": name} for name in STRATEGIES} | {
    name: {"strategy": "exhaustive", "criterion": name} for name in ("exact_match", "information_and_labels")
}


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """A context for each of `WAYS`, on a cell that was searched that way; the smallest strides, for three layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.method.strategies.STRIDE", 1)
        cell = write_project(tmp_path_factory.mktemp("project"))
        for step in (model, data, sample, score):
            step(cell)
        path = cell.root / "params.yaml"
        params = yaml.safe_load(path.read_text())
        found = {}
        for name, way in WAYS.items():
            params["search"] |= way
            path.write_text(yaml.safe_dump(params))
            own = open_cell(root=cell.root)
            search(own)
            prune(own)
            context = StudyContext(own, StudyRun(study="seeds", model="tiny", benchmark="reviews"))
            assert context.recipe  # read before the next way writes another
            found[name] = context, pd.read_parquet(own.grid), read_recipe(own.pruned)
        yield found


@pytest.mark.parametrize("name", WAYS)
def test_a_study_chooses_what_the_step_chooses(contexts, name):
    context, _, recipe = contexts[name]
    again, _ = context.adapt(train=context.train)
    for choice in (context.search(context.samples), again):
        assert (choice.layer, choice.fraction, choice.neurons) == (recipe.layer, recipe.fraction, recipe.neurons)
        assert choice.trail == recipe.trail


def test_the_strategies_do_not_all_choose_the_same(contexts):
    assert len({(recipe.layer, recipe.fraction) for _, _, recipe in contexts.values()}) > 1
    assert len({len(grid) for _, grid, _ in contexts.values()}) > 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_random_control_looks_where_the_cell_looks(contexts, strategy):
    context, _, _ = contexts[strategy]
    fit_data = FitData(context.loaded, context.stack, context.samples, context.samples)
    fitted = systems(context.cell)["random_searched"](fit_data)
    if strategy == "layer_subset":  # random orders are equally prominent, so that the first layer is the subset
        assert fitted.settings["layer"] == 0
    if strategy == "dropping":
        exhaustive = systems(contexts["exhaustive"][0].cell)["random_searched"](fit_data)
        assert fitted.settings == exhaustive.settings


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_free_answers_are_searched_where_the_cell_looks(contexts, strategy):
    context, grid, _ = contexts[strategy]
    if strategy == "dropping":  # it drops by accuracy, and here by exact match: all that the choice needs is left
        grid = contexts["exhaustive"][1]
    rows, ranking, records = context.samples, context.scores.ranked, []
    for layer, fraction in zip(grid.layer, grid.fraction, strict=True):
        neurons = prominent_neurons(ranking[layer], fraction) if layer >= 0 else np.array([], int)
        answers = answers_without(context.stack, rows.encoded, max(layer, 0), [neurons])
        right = exact_matches(context.loaded.tokenizer, rows, answers, 0).mean()
        records.append((layer, fraction, len(neurons), right, answers.margins(rows.gold)[0].mean()))
    if strategy != "coarse_to_fine":  # its second half depends on the result of the first one
        pair, _ = choose(pd.DataFrame(records, columns=list(grid.columns)))
        found = next(record for record in generation(context, "reviews") if record.label == "chosen by exact match")
        assert (found.more["layer"], found.more["fraction"]) == (pair["layer"], pair["fraction"])
