"""The step on a tiny cell: its three files, reproducible bytes, and a page that no row's text can break."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors import safe_open

from tasks.evidence.study_pages import write_page
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import open_cell
from tasks.pipeline.cell_pages import OF, WITH
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl, write_parquet
from tasks.semantics import influence
from tasks.semantics.nsa_page import render, sentence
from tasks.steps.nsa import nsa
from tests.cells import OPTIONS, servable_cell
from tests.comparison.fit_data import WORDS
from tests.evidence.test_report import HOSTILE, parsed, plain
from tests.method.oracles import gauss_legendre

CHROMIUM = shutil.which("chromium")
FILES = ("nsa.json", "nsa.safetensors", "nsa.html")


@pytest.fixture(scope="module", autouse=True)
def _few_nodes():
    """A fixed rule: the adaptive rule is tested with the attributions."""
    by_gradients = partial(influence.by_gradients, rule=partial(gauss_legendre, nodes=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(influence, "by_gradients", by_gradients)
        yield


def write_rows(cell, prompts):
    columns = {"id": [f"row-{i}" for i in range(len(prompts))], "prompt": prompts, "gold": 0}
    frame = pd.DataFrame(columns).assign(options=[OPTIONS] * len(prompts))
    write_parquet(cell.test, frame)
    write_jsonl(cell.samples, frame.head(6).to_dict("records"))


def asked_for(cell, **more):
    """The cell with its entry under `nsa` in params.yaml."""
    path = cell.root / "params.yaml"
    entry = {cell.name: {"model": cell.model, "benchmark": cell.benchmark, **more}}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"nsa": entry}))
    return open_cell(cell.model, cell.benchmark, cell.root)


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    cell = asked_for(servable_cell(tmp_path_factory.mktemp("cell")))
    rng = np.random.default_rng(0)
    often = np.arange(1, len(WORDS) + 5) / sum(range(1, len(WORDS) + 5))
    words = [*WORDS, "script", "of", "the", "plot"]
    prompts = [f"Is it good?\n\n<{' '.join(rng.choice(words, 5, p=often))}> & {i}!\n\nAnswer:" for i in range(24)]
    write_rows(cell, prompts)
    nsa(cell)
    return cell


@pytest.fixture(scope="module")
def found(cell):
    return read_json(cell.directory / "nsa.json")


def test_the_same_bytes_again(cell):
    before = [sha256_file(cell.directory / name) for name in FILES]
    nsa(cell)
    assert [sha256_file(cell.directory / name) for name in FILES] == before


def test_a_killed_step_goes_on_behind_its_last_row(cell, monkeypatch):
    before = [sha256_file(cell.directory / name) for name in FILES]
    found, rows = influence.by_gradients, []

    def dies_at_the_third(stack, encoded, *arguments, **more):
        rows.append(encoded[0].prompt)
        if len(rows) == 3:
            raise KeyboardInterrupt
        return found(stack, encoded, *arguments, **more)

    monkeypatch.setattr(influence, "by_gradients", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        nsa(cell)
    nsa(cell)
    assert len(rows) == 24 + 1
    assert rows[2] == rows[3]
    assert [sha256_file(cell.directory / name) for name in FILES] == before
    assert not list(cell.scratch.glob("nsa*"))


def test_what_params_asks_for_is_done(cell, tmp_path):
    other = asked_for(servable_cell(tmp_path), rows=9, words=2, method="magnitude", sparsity=0.3)
    write_parquet(other.test, pd.read_parquet(cell.test))
    write_jsonl(other.samples, read_jsonl(cell.samples))
    nsa(other)
    found = read_json(other.directory / "nsa.json")
    assert (found["rows"], max(len(example["words"]) for example in found["examples"])) == (9, 2)
    assert found["names"] == {"pruned": "pruned neurons", "magnitude": "Magnitude 30 %"}


def test_the_activations_are_those_of_the_words(cell, found):
    with safe_open(cell.directory / "nsa.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["header"])
    assert set(tensors) == {"a", "a_pruned", "a_wanda"}
    assert header["words"] == [word["word"] for word in found["words"]]
    stack, recipe = DecoderStack(load(cell.model_dir).model), read_json(cell.pruned)
    layer, neurons = recipe["layer"], recipe["neurons"]
    for values in tensors.values():
        assert values.dtype == np.float32
        assert values.shape == (len(stack), len(header["words"]), stack.d_ff)
    assert (tensors["a_pruned"][layer][:, neurons] == 0).all()
    assert (tensors["a_pruned"][:layer] == tensors["a"][:layer]).all()
    assert (tensors["a_wanda"] != tensors["a"]).any()
    for number, word in enumerate(found["words"]):
        after = word["systems"]["pruned"]
        assert word["before"] == pytest.approx(tensors["a"][:, number].mean(1), rel=1e-3)
        assert after["after"] == pytest.approx(tensors["a_pruned"][:, number].mean(1), rel=1e-3)
        assert after["drop"][:layer] == [0] * layer
        assert after["collapsed"][layer] >= round(len(neurons) / stack.d_ff, 4)
    for one in found["neurons"]:
        assert one["pruned"] == (one["layer"] == layer and one["neuron"] in neurons)
        top = one["words"][0]
        assert top["before"] == pytest.approx(tensors["a"][one["layer"], top["word"], one["neuron"]], rel=1e-3)


def test_its_words_are_frequent_influential_and_not_the_templates(found):
    words = {word["word"]: word for word in found["words"]}
    assert len(words) >= 4
    assert not {"is", "it", "answer"} & set(words)
    told = [word["word"] for example in found["examples"] for word in example["words"]]
    for name, word in words.items():
        assert word["occurrences"] >= 3
        assert word["examples"] == told.count(name)
        assert len(word["contexts"]) == 3
    assert all(0 < len(example["words"]) <= 5 for example in found["examples"])
    test = found["systems"]["pruned"]["permutation"]
    assert (test["permutations"], test["chosen"]) == (9999, len(words))
    assert 0 < test["p"] <= 1
    assert len(found["stability"]["splits"]) == 5
    assert -1 <= found["stability"]["mean"] <= 1


def test_the_page_needs_nothing_but_itself(cell, found):
    text = (cell.directory / "nsa.html").read_text(encoding="utf-8")
    tags = parsed(text)
    assert [link for link in tags.loads if not link.startswith(("#", "data:"))] == []
    assert tags.tags.count("script") == 2
    assert not {"iframe", "object", "embed", "img"} & set(tags.tags)
    assert len(tags.ids) == len(set(tags.ids))
    assert embedded(text) == {key: value for key, value in found.items() if key not in (OF, WITH)}
    shown = " ".join(plain(text).split())
    for name in found["systems"]:
        assert sentence(found, name) in shown
    assert not re.search(r"\bNone\b|\bnan\b", shown[: shown.index('{"')])


def embedded(text):
    [data] = re.findall(r'(?s)<script type="application/json" id="data">(.*?)</script>', text)
    assert not re.search("[<>&]", data)
    return json.loads(data)


def test_hostile_text_stays_text(found):
    word = found["words"][0] | {"word": HOSTILE, "contexts": [[HOSTILE] * 4]}
    word["systems"] = {name: one | {"lost": 1.0} for name, one in word["systems"].items()}
    examples = [{"id": HOSTILE, "words": [{"word": HOSTILE, "share": 0.5}, {"word": "b", "share": None}]}]
    hostile = found | {"words": [word, *found["words"][1:]], "examples": examples, "model": HOSTILE}
    text = render(hostile)
    tags = parsed(text)
    assert tags.tags.count("script") == 2
    assert "img" not in tags.tags
    assert embedded(text) == hostile
    assert "innerHTML" not in text
    assert "<script>alert(1)</script>" in plain(text)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
def test_it_is_explored_in_a_browser(found, tmp_path):
    from playwright.sync_api import sync_playwright

    last = len(found["words"]) - 1
    word = found["words"][last] | {"word": HOSTILE, "contexts": [[HOSTILE] * 4]}
    path = tmp_path / "nsa.html"
    path.write_text(render(found | {"words": [*found["words"][:last], word]}), encoding="utf-8")
    heard = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        for event in ("dialog", "pageerror"):
            page.on(event, lambda *_, event=event: heard.append(event))
        page.on("console", lambda message: heard.append(message.text))
        page.on("request", lambda request: heard.append(request.url) if request.url[:5] != "file:" else None)
        page.goto(path.as_uri())
        neurons, words = (page.locator(f"#{name} tbody tr") for name in ("neurons", "words"))
        assert (neurons.count(), words.count()) == (len(found["neurons"]), last + 1)
        page.select_option("#layer", "1")
        assert neurons.count() == sum(one["layer"] == 1 for one in found["neurons"])
        page.locator("#words tbody button", has_text="<script>").click()
        expected = [
            one for one in found["neurons"] if one["layer"] == 1 and last in [entry["word"] for entry in one["words"]]
        ]
        assert neurons.count() == len(expected)
        assert "<img src=x" in page.inner_text("#contexts")
        page.click("#reset")
        page.locator("#neurons th button", has_text="Layer").click()
        assert neurons.first.locator("td").first.inner_text() == str(max(one["layer"] for one in found["neurons"]))
        page.select_option("#system", "wanda")
        assert neurons.count() == len(found["neurons"])
        browser.close()
    assert [one for one in heard if not one.startswith("data:")] == []


def test_it_stands_on_the_page_of_studies(cell, found, tmp_path):
    page = tmp_path / "studies.md"
    assert write_page(cell.root, cell.settings, page) == 1
    text = page.read_text()
    assert f"{len(found['words'])} influential words" in text
    for name, system in found["systems"].items():
        assert f"| {found['names'][name]} | {system['permutation']['mean']:.4f} |" in text


def test_what_was_not_found_is_said(found):
    word = found["words"][0] | {"systems": {name: one | {"lost": None} for name, one in found["words"][0]["systems"].items()}}  # fmt: skip  # noqa: E501
    changed = found | {
        "words": [word],
        "stability": {"mean": None, "splits": [{"seed": 0, "spearman": None, "words": 1}]},
        "without_margin": 2,
        "systems": {
            name: one | {"permutation": one["permutation"] | {"exchangeable": 0}}
            for name, one in found["systems"].items()
        },
        "settings": found["settings"] | {"by": "generation"},
    }
    shown = plain(render(changed))
    assert "no word lost most of its neurons" in shown
    assert "too few words in both halves" in shown
    assert "no other words are as frequent" in shown
    assert "2 rows left out" in shown
    assert "Named by the model itself" in shown


def test_what_is_missing_is_named(tmp_path):
    bare = servable_cell(tmp_path)
    with pytest.raises(InputError, match=r"test\.parquet does not exist"):
        nsa(bare)
    write_rows(bare, WORDS)
    with pytest.raises(InputError, match=r"is not in params\.yaml: `dsm explain --nsa` adds it"):
        nsa(bare)
    bare = asked_for(bare)
    write_rows(bare, [f"Text: {word} :" for word in WORDS])
    with pytest.raises(InputError, match="no influential word occurs 3 times in the 8 rows"):
        nsa(bare)
    write_rows(bare, [f"Text: {word} {word} {word} :" for word in WORDS[:4]])
    write_json(bare.pruned, read_json(bare.pruned) | {"projection": "down_proj", "d_ff": 32, "neurons": [1, 2]})
    nsa(bare)
    found = read_json(bare.directory / "nsa.json")
    assert not any(one["pruned"] for one in found["neurons"])
