"""explanation.json and its page, from a finished cell of a tiny model."""

import re

import numpy as np
import pandas as pd
import pytest

from tasks.evidence.statistics import mcnemar
from tasks.explanation.explanation_page import render, visible
from tasks.explanation.sections import chosen_examples
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, sha256_file, write_parquet
from tasks.steps.explain import explain
from tests.cells import OPTIONS, servable_cell
from tests.evidence.test_report import HOSTILE, parsed, plain


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    cell = servable_cell(tmp_path_factory.mktemp("cell"))
    frame = pd.read_parquet(cell.predictions)
    table = frame[["id", "prompt", "gold"]].assign(options=[OPTIONS] * len(frame))
    write_parquet(cell.test, table)
    explain(cell)
    return cell


@pytest.fixture(scope="module")
def found(cell):
    return read_json(cell.directory / "explanation.json")


def test_the_same_bytes_again(cell):
    files = [cell.directory / name for name in ("explanation.json", "explanation.html")]
    before = [sha256_file(file) for file in files]
    explain(cell)
    assert [sha256_file(file) for file in files] == before


def test_its_numbers_are_those_of_the_predictions(cell, found):
    frame, recipe = pd.read_parquet(cell.predictions), read_json(cell.pruned)
    right = {name: (frame[name] == frame["gold"]).to_numpy() for name in ("base", "pruned")}
    systems = found["bias"]["systems"]
    assert {name: systems[name]["accuracy"] for name in right} == {name: hits.mean() for name, hits in right.items()}
    pair = found["bias"]["comparisons"][0]
    assert pair == {"first": "pruned", "second": "base"} | mcnemar(right["pruned"], right["base"])
    assert set(systems) == {
        *("base", "base + contextual calibration", "base + best threshold"),
        *("pruned", "pruned + contextual calibration", "pruned + best threshold"),
    }
    assert np.sum(found["bias"]["priors"]["pruned"]) == pytest.approx(1)
    assert found["calibration"]["base"]["wrong"] == (~right["base"]).sum()
    assert {one["neuron"] for one in found["neurons"]["top"]} <= set(recipe["neurons"])
    assert found["neurons"]["features"]["gold"]["pruned"]["neurons"] == len(recipe["neurons"])
    assert all(len(one["contexts"]) == 5 and len(one["raised"]) == 8 for one in found["neurons"]["top"])


def test_its_examples_add_up(cell, found):
    frame = pd.read_parquet(cell.predictions).set_index("id")
    examples = found["inputs"]["examples"]
    assert 0 < len(examples) <= 4
    for example in examples:
        assert (example["base"], example["pruned"]) == tuple(frame.loc[example["id"], ["base", "pruned"]])
        assert example["for"] == example["base"]
        # The options have several tokens: the prompt is followed by the tokens that both begin with.
        assert "".join(example["tokens"]) == frame.loc[example["id"], "prompt"] + " "
        own = "".join(example["tokens"][slice(*example["own"])])
        assert own
        assert own in frame.loc[example["id"], "prompt"]
        for side in (example["before"], example["after"]):
            assert np.sum(side["attributions"]) == pytest.approx(side["margin"] + side["gap"], abs=1e-5)
            assert np.abs(side["shares"]).sum() == pytest.approx(1)
            assert not np.delete(side["attributions"], range(*example["own"])).any()
            assert side["settled"] <= (abs(side["gap"]) <= 0.05 * max(abs(side["margin"]), 1))


def test_the_page_needs_nothing_but_itself_and_says_what_was_found(cell, found):
    text = (cell.directory / "explanation.html").read_text(encoding="utf-8")
    tags = parsed(text)
    assert [link for link in tags.loads if not link.startswith(("#", "data:"))] == []
    assert not {"script", "iframe", "object", "embed", "img"} & set(tags.tags)
    assert len(tags.ids) == len(set(tags.ids))
    shown = plain(text)
    assert shown.count("uses test labels") == 2
    assert f"{found['calibration']['base']['ece']:.3f}" in shown
    for example in found["inputs"]["examples"]:
        assert example["id"] in shown
    for neuron in found["neurons"]["top"]:
        assert str(neuron["neuron"]) in shown


def test_hostile_text_stays_text(found):
    example = found["inputs"]["examples"][0]
    hostile = found | {"inputs": {"examples": [example | {"id": HOSTILE, "tokens": [HOSTILE]}], "without_margin": 1}}
    for side in ("before", "after"):
        hostile["inputs"]["examples"][0][side] = example[side] | {"shares": [1.0]}
    text = render(hostile, HOSTILE)
    assert not {"script", "img"} & set(parsed(text).tags)
    assert "<script>alert(1)</script>" in plain(text)


def test_what_has_no_prior_no_variation_and_no_example_is_said(found):
    bias = {name: found["bias"][name] for name in ("systems", "comparisons", "priors")}
    bare = dict.fromkeys(("mean_size", "detected")) | {"neurons": 4}
    features = {"gold": {"kind": "eta", "pruned": bare, "others": bare}}
    top = [one | {"correlations": {"gold": dict.fromkeys("rpq") | {"n": 3}}} for one in found["neurons"]["top"]]
    changed = found | {
        "bias": bias | {"no_prior": "prompt: cannot", "priors": None, "comparisons": bias["comparisons"][:1]},
        "inputs": {"examples": [], "without_margin": 2},
        "neurons": found["neurons"] | {"features": features, "top": top},
        "options": None,
    }
    shown = plain(render(changed, "{{ text }}"))
    assert "No prior was divided out: prompt: cannot" in shown
    assert "there is no row to show" in shown
    assert "gold (eta)" in shown
    assert not re.search(r"\bNone\b|\bnan\b", shown)


def test_flips_come_first_and_from_both_sides():
    def rows(base, pruned, gold):
        return {"gold": gold, "base": int(np.argmax(base)), "pruned": int(np.argmax(pruned)), "base_logprobs": base,
                "pruned_logprobs": pruned}  # fmt: skip

    frame = pd.DataFrame(
        [
            rows([0, 3], [0, 1], 0),  # wrong twice
            rows([0, 1], [1, 0], 0),  # gained
            rows([0, 1], [9, 0], 0),  # gained, more
            rows([0, 1], [1, 0], 1),  # lost
            rows([0, 5], [0, 1], 0),  # wrong twice, surer
            rows([1, 0], [2, 0], 0),  # right twice
        ]
    )
    assert chosen_examples(frame, 2) == [(2, "gained"), (3, "lost")]
    assert chosen_examples(frame, 3) == [(2, "gained"), (1, "gained"), (3, "lost")]
    assert chosen_examples(frame, 9)[3:] == [(4, "wrong"), (0, "wrong")]


def test_what_a_token_prints():
    assert visible("a\n\u200b\tb") == "a↵\n\\x200b\\x09b"


def test_other_rows_and_missing_files_are_named(cell, tmp_path_factory):
    bare = servable_cell(tmp_path_factory.mktemp("bare"))
    frame = pd.read_parquet(bare.predictions)
    write_parquet(bare.test, frame[["prompt", "gold"]].assign(options=[OPTIONS] * len(frame), id="other"))
    with pytest.raises(InputError, match="different rows from the test split"):
        explain(bare)
    bare.predictions.unlink()
    with pytest.raises(InputError, match=r"predictions.parquet does not exist"):
        explain(bare)
