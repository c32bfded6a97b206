"""The inputs of a study other than its cell, and changes of them between two runs."""

import re

import pandas as pd
import pytest
import yaml

from flows.study_flows import list_study
from tasks.pipeline.cell import open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, write_parquet
from tasks.steps.study import study
from tasks.studies.catalogue import STUDIES, Study
from tasks.studies.context import Record
from tests.cells import write_cell
from tests.flows.test_cli import call

KEY = "calibration-tiny-reviews"


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A cell with a study of a file and of another benchmark; its parts are fast, and report their inputs."""
    cell = write_cell(tmp_path)
    (cell.root / "words.txt").write_text("before\n")
    (cell.model_dir).mkdir(parents=True)
    (cell.model_dir / "config.json").write_text("{}")
    for path in (cell.train, cell.test):
        write_parquet(path, pd.DataFrame({"id": [1]}))
    change(
        cell, lambda params: params["benchmarks"].update(others=dict(params["benchmarks"]["reviews"], prompt="before"))
    )
    monkeypatch.chdir(cell.root)
    monkeypatch.setattr("tasks.steps.study.recorded_hash", lambda path: (path / "config.json").read_text())
    monkeypatch.setitem(STUDIES, "calibration", Study(told, parts))
    return cell


def parts(context):
    return ["1", "2", "3"]


ASKED: list[str] = []


def told(context, part):
    ASKED.append(part)
    if len(ASKED) == 2:
        raise KeyboardInterrupt
    text = (context.cell.root / "words.txt").read_text().strip()
    return [Record(f"{part}: {text}, {context.settings.benchmarks['others'].prompt}", 0.5)]


def change(cell, edit):
    path = cell.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    edit(params)
    path.write_text(yaml.safe_dump(params))


def killed(cell):
    ASKED.clear()
    list_study(cell.root, "calibration", "tiny", "reviews", ["words.txt", "others"])
    with pytest.raises(KeyboardInterrupt):
        study(open_cell(root=cell.root), "calibration")


def resumed(cell):
    """The parts that were computed, and the labels of the result."""
    ASKED[:] = ["killed", "killed"]
    study(open_cell(root=cell.root), "calibration")
    return ASKED[2:], [record["label"] for record in read_json(cell.study("calibration") / "result.json")["records"]]


def test_a_killed_study_goes_on_where_nothing_changed(cell):
    killed(cell)
    assert list_study(cell.root, "calibration", "tiny", "reviews", ["words.txt", "others"]) is None
    assert resumed(cell) == (["2", "3"], [f"{part}: before, before" for part in "123"])


@pytest.mark.parametrize("what", ["text", "benchmark"])
def test_a_study_starts_anew_where_what_it_reads_has_changed(cell, what):
    killed(cell)
    if what == "text":
        (cell.root / "words.txt").write_text("after\n")
    else:
        change(cell, lambda params: params["benchmarks"]["others"].update(prompt="after"))
    name = {"text": "words", "benchmark": "others"}[what]
    with pytest.raises(InputError, match=rf"studies\.{KEY}\.inputs: has outdated hashes for {name}: `dsm study"):
        resumed(cell)
    before = yaml.safe_load((cell.root / "params.yaml").read_text())["studies"][KEY]
    assert re.match(rf"studies\.{KEY}\.inputs: ", list_study(cell.root, "calibration", "tiny", "reviews"))
    after = yaml.safe_load((cell.root / "params.yaml").read_text())["studies"][KEY]
    assert {key for key in after if after[key] != before[key]} == {"inputs"}  # what DVC sees
    text = {"text": "after, before", "benchmark": "before, after"}[what]
    assert resumed(cell) == (["1", "2", "3"], [f"{part}: {text}" for part in "123"])


@pytest.mark.parametrize("name", ["train", "test", "samples", "scores", "pruned", "transfer", "config.json"])
def test_a_study_starts_anew_where_a_file_of_the_cell_has_changed(cell, name):
    killed(cell)
    path = cell.model_dir / name if "." in name else getattr(cell, name)
    path.write_bytes(path.read_bytes() + b" ")
    assert resumed(cell)[0] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda params: params["adaptation"].update(seed=1),
        lambda params: params["attribution"].update(max_nodes=16),
        lambda params: params["search"].update(strategy="dropping"),
        lambda params: params["evaluation"].update(control_seeds=[4]),
        lambda params: params["precision"].update(search="bfloat16"),
        lambda params: params["benchmarks"]["reviews"].update(prompt="{{ text }}"),
        lambda params: params["studies"][KEY].update(test=3),
    ],
)
def test_a_study_starts_anew_where_a_setting_has_changed(cell, edit):
    killed(cell)
    change(cell, edit)
    assert resumed(cell)[0] == ["1", "2", "3"]


def test_an_entry_written_by_hand_is_told_what_it_lacks(cell):
    entry = {"study": "calibration", "model": "tiny", "benchmark": "reviews", "texts": {"words": "words.txt"}}
    change(cell, lambda params: params["studies"].update({KEY: entry}))
    with pytest.raises(
        InputError, match=rf"^studies\.{KEY}\.inputs: is missing: `dsm study calibration` writes it, or"
    ):
        study(open_cell(root=cell.root), "calibration")
    code, out, err = call("validate")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    line = yaml.safe_load(err[err.index("inputs: {") :])
    change(cell, lambda params: params["studies"][KEY].update(line))
    ASKED.clear()
    ASKED.extend(["", ""])
    study(open_cell(root=cell.root), "calibration")
    (cell.root / "words.txt").unlink()
    with pytest.raises(InputError, match=rf"studies\.{KEY}\.texts\.words: no such file or directory: words\.txt"):
        study(open_cell(root=cell.root), "calibration")
