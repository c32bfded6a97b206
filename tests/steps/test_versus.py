"""`dsm evaluate` and `dsm try`: the numbers of the steps, for a recipe, an export, a sparse model and any directory."""

import argparse
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.pipeline.cell import open_cell
from tasks.pipeline.settings import load_settings
from tasks.pipeline.sides import find_sides
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, write_text
from tasks.sparsity.sparse_recipe import write_recipe
from tasks.sparsity.weight_pruning import prune_weights
from tasks.steps import try_row
from tasks.steps.versus import compare, main, rows_for
from tasks.tracking.export import apply, export
from tests.sparsity.test_layers import SEQUENCES
from tests.tiny import save_tiny

FIELDS = ("accuracy", "stderr", "exact_match", "exact_match_stderr", "acc_norm", "acc_norm_stderr")


@pytest.fixture
def cell(finished_root):
    return open_cell(root=finished_root)


def found(cell, text, base=None, benchmark=None, limit=None):
    settings = load_settings(cell.root)
    sides = find_sides(str(text), base, settings, cell.root)
    name, table = rows_for(benchmark or sides.benchmark, settings, cell.root, limit)
    return compare(sides, table) | {"benchmark": name}


def test_a_recipe_has_the_numbers_of_its_cell(cell):
    evaluation = read_json(cell.evaluation)
    for text in (cell.pruned, cell.name, cell.pruned.parent):
        one = found(cell, text)
        assert (one["n"], one["benchmark"]) == (evaluation["n"], "reviews")
        for ours, theirs in (("base", "base"), ("model", "pruned")):
            for field in FIELDS:
                name = "accuracy_stderr" if field == "stderr" else field
                assert one["systems"][ours][name] == pytest.approx(evaluation["systems"][theirs][field])
        assert one["model_vs_base"]["accuracy"] == evaluation["comparisons"]["pruned_vs_base"]
        assert one["model_vs_base"]["exact_match"] == evaluation["comparisons"]["exact_match"]["pruned_vs_base"]


def test_an_export_is_evaluated_by_its_own_weights_beside_the_base_that_its_recipe_names(cell, tmp_path):
    export(cell, tmp_path / "out")
    assert found(cell, tmp_path / "out") == found(cell, cell.pruned)
    (tmp_path / "out" / "pruned.json").unlink()
    alone = found(cell, tmp_path / "out", benchmark="reviews")
    assert list(alone["systems"]) == ["model"]
    assert "model_vs_base" not in alone
    assert found(cell, tmp_path / "out", base="tiny", benchmark="reviews") == found(cell, cell.pruned)


def test_a_sparse_model_by_its_masks_and_by_its_weights(cell, tmp_path):
    loaded = load(cell.model_dir)
    report = prune_weights(loaded, SEQUENCES, "magnitude", 0.5)
    write_recipe(tmp_path / "s", loaded, report, base_sha256=sha256_directory(cell.model_dir), calibration=None)
    apply(tmp_path / "s" / "sparse.json", cell.model_dir, tmp_path / "out")
    by_masks = found(cell, tmp_path / "s" / "sparse.json", benchmark="reviews")
    assert by_masks == found(cell, tmp_path / "s", benchmark="reviews")
    assert by_masks == found(cell, tmp_path / "out", benchmark="reviews")
    base = found(cell, cell.pruned)["systems"]["base"]
    assert by_masks["systems"]["base"] == base
    assert by_masks["systems"]["model"] != base


def test_any_directory_beside_any_base_on_any_rows(cell, tmp_path):
    other = save_tiny(tmp_path / "other", seed=5)
    rows = [{"question": f"Is {i} odd?", "choices": ["no", "yes"], "answer": i % 2} for i in range(40)]
    write_text(tmp_path / "quiz.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    before = (cell.root / "params.yaml").read_bytes()
    one = found(cell, other, base="tiny", benchmark=str(tmp_path / "quiz.jsonl"), limit=9)
    assert (one["n"], one["benchmark"]) == (9, "quiz")
    assert one["systems"]["model"] != one["systems"]["base"]
    same = found(cell, cell.model_dir, base="tiny", benchmark="reviews")
    assert all(pair["difference"] == 0 and pair["p"] == 1 for pair in same["model_vs_base"].values())
    assert (cell.root / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "base", "problem"),
    [
        ("nothing", None, "model: no such file or directory: nothing"),
        (
            "data",
            None,
            "model: data has no config.json, pruned.json or sparse.json: it is neither a model nor a recipe",
        ),
        ("{pruned}", "other", "base: {root}/other has hash {other}, but the recipe is for {tiny}"),
        ("reviews.jsonl", None, "reviews.jsonl: Invalid JSON"),
    ],
)
def test_what_cannot_be_compared_is_refused(cell, text, base, problem):
    root = cell.root
    save_tiny(root / "other", seed=5)
    names = {"pruned": cell.pruned, "root": root, "other": sha256_directory(root / "other")}
    names["tiny"] = sha256_directory(cell.model_dir)
    with pytest.raises(InputError) as refused:
        find_sides(text.format(**names), base, load_settings(root), root)
    assert problem.format(**names) in str(refused.value)


def test_a_recipe_whose_base_is_not_here(cell):
    shutil.rmtree(cell.model_dir)
    with pytest.raises(InputError, match=r"^base: no fetched model has the hash [0-9a-f]{64}; name its dir"):
        find_sides(str(cell.pruned), None, load_settings(cell.root), cell.root)


def test_the_step_writes_what_it_found(cell, tmp_path):
    arguments = argparse.Namespace(model=cell.name, base=None, benchmark=None, limit=5, out=tmp_path / "found.json")
    main(arguments, cell.root)
    written = read_json(tmp_path / "found.json")
    assert (written["n"], written["model"], written["benchmark"]) == (5, cell.name, "reviews")
    assert written["base"] == "data/models/tiny"


# -- try --------------------------------------------------------------------------------------------------------------


def typed(cell, monkeypatch, *lines, row=None, as_json=False):
    monkeypatch.chdir(cell.root)
    given = iter(lines)

    def answer(asked):
        print(asked, end="")
        line = next(given, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", answer)
    try_row.main(argparse.Namespace(model=None, benchmark=None, row=row, json=as_json))


def test_a_row_of_the_test_split_gets_the_answers_of_the_evaluation(cell, monkeypatch, capsys):
    predictions = pd.read_parquet(cell.predictions)
    prompt = predictions.prompt[0]
    typed(cell, monkeypatch, row=prompt.removesuffix(" :"), as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["prompt"], answer["options"]) == (prompt, [" no", " yes"])
    for name in ("base", "pruned"):
        logprobs = predictions[f"{name}_logprobs"][0].astype(np.float64)
        expected = np.exp(logprobs) / np.exp(logprobs).sum()
        np.testing.assert_allclose(answer[name]["probabilities"], expected, atol=1e-5)
        assert answer[name]["option"] == answer["options"][predictions[name][0]]
        assert isinstance(answer[name]["says"], str)
    typed(cell, monkeypatch, row=json.dumps({"text": prompt.removesuffix(" :")}))
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["option", "base", "pruned"]
    assert sum(line.count("*") for line in out[1:3]) == 2
    assert out[3] == f"base continues: {answer['base']['says']!r}"


def test_rows_are_asked_for_until_an_empty_line(cell, monkeypatch, capsys):
    typed(cell, monkeypatch, "a warm film", "a dull film", "")
    out = capsys.readouterr().out
    assert out.startswith("a row has text; an empty line quits\ntext> ")
    assert out.count("pruned continues: ") == 2


def test_a_row_that_lacks_a_field(cell, monkeypatch):
    with pytest.raises(InputError, match=r"^row: lacks text; a row has text$"):
        typed(cell, monkeypatch, row='{"txt": "a"}')
    with pytest.raises(InputError, match=r"^row: is not JSON: "):
        typed(cell, monkeypatch, row="{text")
    cell.pruned.unlink()
    with pytest.raises(InputError, match=r"^cell: tiny-reviews has no pruned.json yet; run `dsm run` for it first$"):
        typed(cell, monkeypatch, row="a")
