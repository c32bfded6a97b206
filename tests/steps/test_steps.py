"""The steps one after the other on a tiny model and a tiny benchmark, through files, as DVC runs them."""

import json
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tasks.benchmarks.scoring import Answers, option_logprobs
from tasks.benchmarks.splits import hash_position
from tasks.benchmarks.table import encode_rows, exact_matches
from tasks.evidence.preflight_note import describe_answers, warning
from tasks.method.algorithm import adapt
from tasks.method.attribute import Attributor
from tasks.method.options import Attribution
from tasks.method.recipe import read_recipe
from tasks.models.hashing import sha256_directory
from tasks.models.loading import Loaded, load
from tasks.pipeline.cell import open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, read_jsonl, sha256_file
from tasks.steps.data import store as data
from tasks.steps.evaluate import evaluate
from tasks.steps.model import store as model
from tasks.steps.prune import prune
from tasks.steps.sample import sample
from tasks.steps.score import attributor, score
from tasks.steps.search import search
from tasks.steps.transfer import transfer
from tasks.tracking.export import apply, export
from tests.cells import pipeline
from tests.tiny import save_tiny, tiny_tokenizer

STEPS = [sample, score, search, prune, evaluate, transfer]
WORDS = ["good", "fine", "dull", "bad", "long", "short", "warm", "cold"]


def write_project(root, family="llama", **sections):
    """params.yaml, a tiny model and 120 sentences in `root`."""
    save_tiny(root / "source", family)
    rng = np.random.default_rng(1)
    rows = [{"text": " ".join(rng.choice(WORDS, 4)) + f" {i}", "label": int(rng.integers(2))} for i in range(120)]
    (root / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "path", "path": "reviews.jsonl", "sha256": sha256_file(root / "reviews.jsonl")}
    params = {
        "pipeline": pipeline(("tiny", "reviews")),
        "adaptation": {"size": 6, "seed": 0, "selection": "random"},
        "attribution": {"quadrature": "adaptive", "steps": 20, "tolerance": 0.01, "max_nodes": 12},
        "search": {"fractions": [0.1, 0.2, 0.4]},
        "evaluation": {"control_seeds": [0, 1]},
        "studies": {},
        "nsa": {},
        "sparse": {},
        "models": {
            "tiny": {"source": {"kind": "path", "path": "source", "sha256": sha256_directory(root / "source")}},
        },
        "benchmarks": {
            "reviews": {
                "train": {"source": source, "fields": {"text": "{{ text }}"}, "gold": "{{ label }}"},
                "test": {"split": 40, "seed": 0},
                "prompt": "{{ text }} :",
                "options": [" no", " yes !"],
                "labels": ["0", "1"],
                "limits": {"test": 30, "transfer": 8},
            }
        },
    }
    for section, change in sections.items():
        params[section] |= change
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return open_cell(root=root)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    cell = write_project(tmp_path_factory.mktemp("project"))
    for step in [model, data, *STEPS]:
        step(cell)
    return cell


def draw_rows(table, size):
    """The rows of a table with the smallest hashes."""
    rows = sorted(
        table.to_dict("records"), key=lambda r: hash_position("adaptation", 0, r["prompt"], list(r["options"]))
    )
    return pd.DataFrame(rows[:size])


def outputs(cell):
    files = [path for path in cell.directory.iterdir() if path.is_file()]
    return {path.name: sha256_file(path) for path in files}


def test_every_step_writes_the_same_bytes_again(finished):
    before = outputs(finished)
    for step in STEPS:
        step(finished)
    assert outputs(finished) == before
    assert set(before) == {
        *(
            "samples.jsonl",
            "unlabeled.jsonl",
            "preflight.json",
            "scores.safetensors",
            "grid.parquet",
            "pruned.json",
            "predictions.parquet",
        ),
        *("evaluation.json", "transfer.parquet", "transfer.json"),
    }
    assert not list(finished.scratch.glob("*.jsonl")), "a journal was left behind"


def test_samples_are_rows_of_train_and_never_of_test(finished):
    samples = read_jsonl(finished.samples)
    assert len(samples) == 6
    train, test = pd.read_parquet(finished.train), pd.read_parquet(finished.test)
    assert {row["id"] for row in samples} <= set(train.id)
    assert not {row["prompt"] for row in samples} & set(test.prompt)


def test_before_all_else_some_train_rows_are_answered(finished, capsys):
    found, samples = read_json(finished.preflight), read_jsonl(finished.samples)
    train = pd.read_parquet(finished.train)
    others = train[~train["id"].isin([row["id"] for row in samples])]
    unlabeled = draw_rows(others, 50)
    assert read_jsonl(finished.unlabeled) == json.loads(unlabeled.drop(columns="gold").to_json(orient="records"))
    asked = pd.concat([pd.DataFrame(samples), unlabeled])
    given = option_logprobs(load(finished.model_dir), asked["prompt"].tolist(), [list(o) for o in asked["options"]])
    predicted = [int(values.argmax()) for values in given]
    assert found["predicted"] == [predicted.count(0), predicted.count(1)]
    assert (found["n"], found["labeled"]) == (56, 6)
    right = [p == row["gold"] for p, row in zip(predicted, samples, strict=False)]
    assert found["accuracy"] == pytest.approx(np.mean(right))


def test_examples_that_are_all_answered_correctly_are_warned_about():
    found = {"n": 36, "labeled": 6, "accuracy": 1.0, "predicted": [16, 20], "options": [" no", " yes"]}
    line = warning(found)
    assert "and 6 of the 6 examples correctly: no pruned model can be better on these examples" in line
    assert warning(found | {"accuracy": 5 / 6}) is None


@pytest.mark.parametrize(("counts", "warned"), [([36, 0], True), ([1, 35], True), ([6, 30], False)])
def test_a_model_that_answers_with_one_option_is_warned_about(counts, warned):
    found = {"n": 36, "labeled": 6, "accuracy": 0.5, "predicted": counts, "options": [" no", " yes"]}
    line = warning(found)
    assert bool(line) == warned
    if line:
        assert line.startswith(
            f"the unpruned model answers 36 train rows with ' no' {counts[0]}, ' yes' {counts[1]} times"
        )
        assert "chat_template" in line
    per_row = describe_answers(found | {"options": None})
    assert f"option 1 {counts[0]}, option 2 {counts[1]}" in per_row
    assert "3 of the 6 examples" in per_row


@pytest.mark.parametrize("selection", ["correct", "wrong"])
def test_selection_by_the_unpruned_model(finished, tmp_path, selection):
    cell = write_project(tmp_path, adaptation={"selection": selection})
    model(cell)
    data(cell)
    sample(cell)
    rows = read_jsonl(cell.samples)
    found = option_logprobs(load(cell.model_dir), [r["prompt"] for r in rows], [r["options"] for r in rows])
    right = [values.argmax() == row["gold"] for values, row in zip(found, rows, strict=True)]
    assert right == [selection == "correct"] * 6


def test_too_few_rows_for_the_sample(tmp_path):
    cell = write_project(tmp_path, adaptation={"size": 81})
    model(cell)
    data(cell)
    with pytest.raises(InputError, match=r"adaptation\.size: 81, but the train split has 80 rows"):
        sample(cell)
    assert not cell.samples.exists()


def test_a_fraction_that_is_no_neuron_is_refused(finished, tmp_path):
    params = yaml.safe_load((finished.root / "params.yaml").read_text())
    params["search"]["fractions"] = [0.01, 0.4]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "data").symlink_to(finished.root / "data")
    before = sha256_file(finished.grid)
    with pytest.raises(InputError, match=r"search\.fractions: 0\.01 of 48 neurons is less than half a neuron"):
        search(open_cell(root=tmp_path))
    assert sha256_file(finished.grid) == before


def test_scores_have_their_header(finished):
    with safe_open(finished.scores, framework="numpy") as file:
        header = json.loads(file.metadata()["header"])
        scores, nodes = file.get_tensor("scores"), file.get_tensor("nodes")
        gap = file.get_tensor("scores").sum(1) - file.get_tensor("difference")
        np.testing.assert_allclose(gap, file.get_tensor("gap"), atol=1e-4)
    assert scores.shape == (3, 48)
    assert scores.dtype == np.float32
    assert header["samples_sha256"] == sha256_file(finished.samples)
    assert header["model_sha256"] == sha256_directory(finished.model_dir)
    named = {name: header[name] for name in ("method", "path", "projection", "target", "ranking")}
    assert named == Attribution().model_dump(include=set(named))
    assert nodes.max() <= 12


def test_the_builder_of_the_scores_can_be_sent_to_another_process(finished):
    make = pickle.loads(pickle.dumps(partial(attributor, finished)))
    part = make().parts[1]
    with safe_open(finished.scores, framework="numpy") as file:
        np.testing.assert_array_equal(np.float32(make().compute(part)["scores"][0]), file.get_tensor("scores")[1])


def cell_like(finished, root, **attribution):
    """A cell with the same model and rows but other settings of the attribution, up to its evaluation."""
    params = yaml.safe_load((finished.root / "params.yaml").read_text())
    params["attribution"] |= attribution
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    cell = open_cell(root=root)
    for there, here in [(finished.model_dir, cell.model_dir), (finished.benchmark_dir, cell.benchmark_dir)]:
        here.parent.mkdir(parents=True, exist_ok=True)
        here.symlink_to(there)
    for step in STEPS:
        step(cell)
    return cell


@pytest.mark.parametrize("projection", ["up_proj", "down_proj"])
def test_rows_of_another_projection_are_scored_searched_pruned_and_exported(finished, tmp_path, projection):
    cell = cell_like(finished, tmp_path, projection=projection, ranking="absolute", quadrature="riemann_right", steps=4)
    recipe, width = read_recipe(cell.pruned), 32 if projection == "down_proj" else 48
    assert (recipe.projection, recipe.d_ff) == (projection, width)
    with safe_open(cell.scores, framework="numpy") as file:
        scores = file.get_tensor("scores")
    assert scores.shape == (3, width)
    assert scores.min() < 0, "signs are kept in the file"
    sizes = np.abs(scores[recipe.layer])
    assert sizes[recipe.neurons].min() >= np.delete(sizes, recipe.neurons).max()
    grid, transferred = pd.read_parquet(cell.grid), pd.read_parquet(cell.transfer_grid)
    assert grid.neurons.tolist() == transferred.neurons.tolist()
    assert grid.neurons.max() == int(0.4 * width + 0.5)

    export(cell, tmp_path / "out")
    assert f"(rows of `mlp.{projection}`)" in (tmp_path / "out" / "README.md").read_text()
    loaded = load(tmp_path / "out")
    rows = loaded.model.get_parameter(f"model.layers.{recipe.layer}.mlp.{projection}.weight")
    assert torch.nonzero(rows.abs().sum(1) == 0).flatten().tolist() == recipe.neurons
    samples = read_jsonl(cell.samples)
    answers = option_logprobs(loaded, [row["prompt"] for row in samples], [row["options"] for row in samples])
    right = [values.argmax() == row["gold"] for values, row in zip(answers, samples, strict=True)]
    assert recipe.adaptation.accuracy == pytest.approx(np.mean(right)), "the grid pruned something else"
    table = pd.read_parquet(cell.test).head(30)
    found = option_logprobs(loaded, table.prompt.tolist(), table.options.map(list).tolist())
    expected = pd.read_parquet(cell.predictions).pruned_logprobs
    for values, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, wanted, atol=1e-4)


def test_in_memory_the_method_gives_the_bytes_of_the_steps(finished):
    loaded, settings = load(finished.model_dir), finished.settings
    examples = read_jsonl(finished.samples)
    found = adapt(loaded.model, loaded.tokenizer, examples, attribution=settings.attribution, search=settings.search)
    with safe_open(finished.scores, framework="numpy") as file:
        header = json.loads(file.metadata()["header"])
    assert found.scores.header == {name: value for name, value in header.items() if not name.endswith("_sha256")}
    assert replace(found.scores, header=header).to_bytes() == finished.scores.read_bytes()
    pd.testing.assert_frame_equal(found.grid, pd.read_parquet(finished.grid), check_exact=True)
    recipe = read_json(finished.pruned)
    assert found.recipe.model_dump() | {name: recipe[name] for name in ("model", "benchmark", "base_sha256")} == recipe


@pytest.mark.parametrize("criterion", ["exact_match", "prior_corrected", "mutual_information"])
def test_another_criterion_chooses_as_in_memory_and_is_named(tmp_path, criterion):
    cell = write_project(tmp_path, search={"fractions": [0.1, 0.4], "criterion": criterion})
    for step in (model, data, sample, score, search, prune):
        step(cell)
    loaded, settings, examples = load(cell.model_dir), cell.settings, read_jsonl(cell.samples)
    found = adapt(
        *(loaded.model, loaded.tokenizer, examples),
        attribution=settings.attribution,
        search=settings.search,
        unlabeled=read_jsonl(cell.unlabeled),
    )
    grid, recipe = pd.read_parquet(cell.grid), read_recipe(cell.pruned)
    pd.testing.assert_frame_equal(found.grid, grid, check_exact=True)
    assert found.recipe.trail == recipe.trail
    assert grid.attrs["criterion"] == criterion
    assert not list(cell.scratch.glob("*.jsonl")), "a journal was left behind"


def test_a_criterion_without_its_rows_is_refused(tmp_path):
    cell = write_project(tmp_path, search={"fractions": [0.4], "criterion": "mutual_information"})
    for step in (model, data, sample, score):
        step(cell)
    cell.unlabeled.write_text("")
    with pytest.raises(InputError, match=r"search\.criterion: mutual_information needs train rows outside"):
        search(cell)
    assert not cell.grid.exists()


def test_the_recipe_names_the_best_scored_neurons_of_the_best_pair(finished):
    recipe = read_recipe(finished.pruned)
    grid = pd.read_parquet(finished.grid)
    assert recipe.adaptation.accuracy == grid[grid.layer >= 0].accuracy.max()
    with safe_open(finished.scores, framework="numpy") as file:
        scores = file.get_tensor("scores")[recipe.layer]
    kept = np.delete(scores, recipe.neurons)
    assert scores[recipe.neurons].min() >= kept.max()
    assert len(recipe.neurons) == int(recipe.fraction * 48 + 0.5)


def test_evaluation_follows_from_the_predictions(finished):
    frame, result = pd.read_parquet(finished.predictions), read_json(finished.evaluation)
    assert result["n"] == len(frame) == 30
    for name in ("base", "pruned"):
        system = result["systems"][name]
        assert system["accuracy"] == (frame[name] == frame.gold).mean()
        assert system["predicted"] == np.bincount(frame[name], minlength=2).tolist()
        assert np.trace(system["confusion"]) == (frame[name] == frame.gold).sum()
        assert [values.argmax() for values in frame[f"{name}_logprobs"]] == frame[name].tolist()
    p = float(f"{result['comparisons']['pruned_vs_base']['p']:.2g}")
    rounded = {name: round(result["systems"][name]["accuracy"], 3) for name in ("base", "pruned")}
    assert read_json(finished.metrics) == rounded | {"p": p}


def test_the_exported_model_predicts_in_plain_transformers_what_the_masked_one_did(finished, tmp_path):
    export(finished, tmp_path / "out")
    frame, table = pd.read_parquet(finished.predictions), pd.read_parquet(finished.test).head(30)
    tokenizer = load(finished.model_dir).tokenizer
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval().requires_grad_(False)
    for row, expected in zip(table.itertuples(), frame.pruned_logprobs, strict=True):
        found = []
        for option in row.options:
            ids, start = tokenizer(row.prompt + option)["input_ids"], len(tokenizer(row.prompt)["input_ids"])
            logprobs = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
            found.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids))))
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert read_recipe(tmp_path / "out" / "pruned.json") == read_recipe(finished.pruned)
    assert "exact McNemar p" in (tmp_path / "out" / "README.md").read_text()


def test_apply_makes_the_same_weights_and_refuses_another_base(finished, tmp_path):
    export(finished, tmp_path / "exported")
    apply(finished.pruned, finished.model_dir, tmp_path / "applied")
    assert sha256_file(tmp_path / "applied" / "model.safetensors") == sha256_file(
        tmp_path / "exported" / "model.safetensors"
    )
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="but the recipe is for"):
        apply(finished.pruned, other, tmp_path / "refused")
    with pytest.raises(InputError, match="exists already"):
        apply(finished.pruned, finished.model_dir, tmp_path / "applied")
    assert not (tmp_path / "refused").exists()


def test_no_transfer_check_with_limit_zero(finished, tmp_path):
    params = yaml.safe_load((finished.root / "params.yaml").read_text())
    params["benchmarks"]["reviews"]["limits"]["transfer"] = 0
    root = tmp_path / "copy"
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "data").symlink_to(finished.root / "data")
    before = {path: path.read_bytes() for path in (finished.transfer, finished.transfer_grid)}
    cell = open_cell(root=root)
    transfer(cell)
    assert read_json(cell.transfer) == {"n": 0}
    assert list(pd.read_parquet(cell.transfer_grid).columns) == list(pd.read_parquet(cell.grid).columns)
    for path, content in before.items():
        path.write_bytes(content)


def test_a_score_that_was_killed_ends_with_the_same_bytes(finished, monkeypatch):
    before = outputs(finished)
    attribute, calls = Attributor.attribute, []

    def dies_at_the_second(self, part):
        calls.append(part)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return attribute(self, part)

    monkeypatch.setattr(Attributor, "attribute", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        score(finished)
    score(finished)
    assert calls == [(0,), (1,), (1,), (2,)]
    assert outputs(finished) == before


def test_missing_weights_are_refused(finished, tmp_path):
    model_ = load(finished.model_dir).model
    del model_.model.layers[2]
    model_.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match="missing_keys"):
        load(tmp_path)


@pytest.mark.parametrize("selected", ["base", "pruned"])
def test_served_predictions_equal_the_evaluated_ones(finished, tmp_path, selected):
    frame, table = pd.read_parquet(finished.predictions), pd.read_parquet(finished.test).head(30)
    directory = finished.model_dir
    if selected == "pruned":
        export(finished, tmp_path / "out")
        directory = tmp_path / "out"
    loaded = load(directory)
    assert isinstance(loaded, Loaded)
    found = option_logprobs(loaded, table.prompt.tolist(), table.options.map(list).tolist())
    assert [int(values.argmax()) for values in found] == frame[selected].tolist()


QUIZ = """
quiz:
  train: {source: {kind: path, path: quiz.jsonl, sha256: SHA}, gold: "{{ right }}"}
  test: {split: 40, seed: 0}
  prompt: "{{ question }}\\n"
  options: [" {{ a }}", " {{ b }}", " {{ c }}", " {{ d }}"]
  labels: [A, B, C, D]
  chat_template: true
  limits: {test: 30, transfer: 8}
"""


def quiz_cell(root):
    """A cell with a chat template whose four options are columns of the row."""
    write_project(root)
    rng = np.random.default_rng(2)
    rows = [
        {"question": f"Which word, number {i}?", "right": "ABCD"[i % 4]}
        | dict(zip("abcd", rng.permutation(WORDS)[:4].tolist(), strict=True))
        for i in range(60)
    ]
    (root / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "source" / "chat_template.jinja").write_text(
        "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}{{ '<assistant>\n' }}"
    )
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["models"]["tiny"]["source"]["sha256"] = sha256_directory(root / "source")
    params["benchmarks"] |= yaml.safe_load(QUIZ.replace("SHA", sha256_file(root / "quiz.jsonl")))
    params["pipeline"] = pipeline(("tiny", "quiz"))
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    cell = open_cell(root=root)
    for step in [model, data, *STEPS]:
        step(cell)
    return cell


def test_a_benchmark_with_options_of_the_row_asked_through_a_chat_template(tmp_path):
    cell = quiz_cell(tmp_path)
    result, rows = read_json(cell.evaluation), read_jsonl(cell.samples)
    assert result["options"] is None
    assert result["n"] == 30
    assert sum(result["systems"]["base"]["predicted"]) == 30
    assert len(result["systems"]["base"]["confusion"]) == 4
    assert all(row["chat"] and len(set(row["options"])) == 4 for row in rows)
    # The first row's log-probabilities, by a plain forward pass on the text of the template.
    frame = pd.read_parquet(cell.predictions).iloc[0]
    table = pd.read_parquet(cell.test).set_index("id")
    loaded = load(cell.model_dir)
    text = f"<user>{frame['prompt']}<assistant>"
    for option, expected in zip(table.loc[frame["id"], "options"], frame["base_logprobs"], strict=True):
        ids, start = loaded.tokenizer(f"{text}\n{option[1:]}")["input_ids"], len(loaded.tokenizer(text)["input_ids"])
        logprobs = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found = sum(float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids)))
        assert found == pytest.approx(expected, abs=1e-3)
    export(cell, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert '[" {{ a }}", " {{ b }}", " {{ c }}", " {{ d }}"]` after this prompt' in card
    assert "(through the chat template, with the date 2024-07-26):" in card


def test_a_prompt_with_nothing_in_it_cannot_be_attributed(tmp_path):
    cell = write_project(tmp_path)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["benchmarks"]["reviews"] |= {"prompt": "", "options": [" {{ text }} no", " {{ text }} yes"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    cell = open_cell(root=tmp_path)
    model(cell)
    data(cell)
    with pytest.raises(InputError, match="prompt: is empty in some of the rows: there is nothing to attribute"):
        sample(cell)


def test_white_space_that_the_prompt_ends_in_need_not_be_predicted():
    tokenizer = tiny_tokenizer()
    table = pd.DataFrame({"id": ["a"], "prompt": ["Answer:\n"], "options": [["A", "B"]], "gold": [1]})
    rows = encode_rows(table, tokenizer, 100)
    answers = Answers([], [np.array([[tokenizer("xA")["input_ids"], tokenizer("xB")["input_ids"]]])])
    assert exact_matches(tokenizer, rows, answers, 0).tolist() == [True]
    answers.greedy[0] = np.array([[tokenizer("\nA")["input_ids"], tokenizer("\nC")["input_ids"]]])
    assert exact_matches(tokenizer, rows, answers, 0).tolist() == [False]
