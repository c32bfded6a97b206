"""A mixture of experts through all steps, from its directory to the exported and the applied weights."""

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tasks.benchmarks.scoring import option_logprobs
from tasks.method.pairs import UNPRUNED
from tasks.method.scores import read_scores
from tasks.models.loading import Loaded
from tasks.pipeline.cell import open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json
from tasks.steps.data import store as data
from tasks.steps.explain import explain
from tasks.steps.model import store as model
from tasks.steps.nsa import nsa
from tasks.steps.score import score
from tasks.tracking.export import apply, export
from tests.steps.test_steps import STEPS, write_project
from tests.tiny import EACH, MIXTURES, tiny_tokenizer


@pytest.fixture(scope="module", params=MIXTURES)
def finished(request, tmp_path_factory):
    cell = write_project(tmp_path_factory.mktemp("project"), request.param)
    for step in [model, data, *STEPS]:
        step(cell)
    return cell


def test_the_exported_and_the_applied_weights_are_the_recipe(finished, tmp_path):
    recipe = read_json(finished.pruned)
    export(finished, tmp_path / "exported")
    apply(finished.pruned, finished.root / "source", tmp_path / "applied")
    base, *pruned = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
        for path in (finished.model_dir, tmp_path / "exported", tmp_path / "applied")
    )
    for neuron in recipe["neurons"]:
        base.model.layers[recipe["layer"]].mlp.experts.gate_up_proj[divmod(neuron, EACH)] = 0
    for other in pruned:
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in base.state_dict().items())

    frame, test = pd.read_parquet(finished.predictions), pd.read_parquet(finished.test)
    asked = test.set_index("id").loc[frame.id]
    given = option_logprobs(
        Loaded(pruned[0], tiny_tokenizer()), asked.prompt.tolist(), [list(options) for options in asked.options]
    )
    assert frame.pruned.tolist() == [int(values.argmax()) for values in given]
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"of the {4 * EACH} neurons (rows of `mlp.experts.gate_up_proj`)" in card


def test_the_files_say_how_many_experts_no_token_is_given_to(finished, capsys):
    scores = read_scores(finished.scores)
    score(finished)
    assert read_scores(finished.scores).header == scores.header
    number = sum(map(len, scores.header["experts"]["unreached"]))
    told = f"experts: {number} of 12 receive no token of the adaptation set; their {number * EACH} neurons have"
    assert told in capsys.readouterr().out
    grid = pd.read_parquet(finished.grid)
    assert set(grid[grid.layer != UNPRUNED].neurons) == {5, 10, 19}


def test_all_steps_again_give_the_same_bytes(finished):
    before = {path.name: path.read_bytes() for path in finished.directory.iterdir() if path.is_file()}
    for step in STEPS:
        step(finished)
    after = {path.name: path.read_bytes() for path in finished.directory.iterdir() if path.is_file()}
    assert after == before


def test_its_neurons_are_explained(finished):
    cell = open_cell(root=finished.root)
    explain(cell)
    found = read_json(cell.directory / "explanation.json")
    assert {one["neuron"] for one in found["neurons"]["top"]} <= set(read_json(cell.pruned)["neurons"])


def test_nsa_is_refused_before_it_computes_anything(finished):
    params = yaml.safe_load((finished.root / "params.yaml").read_text())
    entry = {finished.name: {"model": finished.model, "benchmark": finished.benchmark}}
    (finished.root / "params.yaml").write_text(yaml.safe_dump(params | {"nsa": entry}))
    with pytest.raises(InputError, match=r"^model: tiny is a mixture of experts, for which NSA is not supported: it"):
        nsa(open_cell(root=finished.root))
    (finished.root / "params.yaml").write_text(yaml.safe_dump(params))
