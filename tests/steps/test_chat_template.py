"""A cell with a chat template that reads the clock: steps and registered model do not depend on the day."""

import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from transformers.utils import chat_template_utils

from tasks.benchmarks.chat import _compiled
from tasks.models.hashing import sha256_directory
from tasks.pipeline.cell import Cell, open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_jsonl, sha256_file
from tasks.steps.data import store as data
from tasks.steps.model import store as model
from tasks.steps.register import register
from tasks.steps.report import report
from tasks.steps.sample import sample
from tests.benchmarks.test_chat import LLAMA, Later
from tests.faults.fault_project import write_sources
from tests.steps.test_steps import STEPS, outputs


def chat_cell(root: Path, template: str, **fields: object) -> Cell:
    """The smallest project, with this chat template; model and rows are stored."""
    write_sources(root)
    (root / "source" / "chat_template.jinja").write_text(template)
    return changed(root, {"chat_template": True} | fields)


def changed(root: Path, fields: dict[str, object]) -> Cell:
    """The cell with these fields of its benchmark; model and rows are stored again."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["models"]["tiny"]["source"]["sha256"] = sha256_directory(root / "source")
    params["benchmarks"]["reviews"] |= fields
    params["benchmarks"]["reviews"]["train"]["source"]["sha256"] = sha256_file(root / "reviews.jsonl")
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    cell = open_cell(root=root)
    model(cell)
    data(cell)
    return cell


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
@pytest.mark.filterwarnings("ignore:Operation with range is deprecated:pandas.errors.Pandas4Warning")
def test_every_step_writes_the_same_bytes_on_another_day(tmp_path, monkeypatch):
    cell = chat_cell(tmp_path, LLAMA, date="2025-02-03")
    for step in STEPS:
        step(cell)
    before = outputs(cell)
    assert {row["chat"] for row in read_jsonl(cell.samples)} == {"2025-02-03"}
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    _compiled.cache_clear()
    for step in STEPS:
        step(cell)
    assert outputs(cell) == before
    report(cell)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    register(cell)  # compares the served model's answers with those of `evaluate`
    version = mlflow.pyfunc.load_model(f"models:/{cell.name}@challenger")
    assert version.model_config["chat"] == "2025-02-03"


def test_another_date_is_another_prompt(tmp_path):
    cell = chat_cell(tmp_path, LLAMA)
    sample(cell)
    before = read_jsonl(cell.samples)
    sample(changed(tmp_path, {"date": "2025-02-03"}))
    assert read_jsonl(cell.samples) == [row | {"chat": "2025-02-03"} for row in before]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('no user here') }}", "no user here"),
        ("{% if %}", "Expected an expression"),
        ("{{ unknown() }}", "'unknown' is undefined"),
        ("{{ messages[0].content }}{{ range(3) | random }}", "it uses `random`"),
        ("", "has no chat template"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_by_the_first_step_that_reads_it(tmp_path, template, told):
    cell = chat_cell(tmp_path, template)
    with pytest.raises(InputError, match=f"^row test-[0-9]+: chat_template: .*{told}"):
        sample(cell)
    assert not cell.samples.exists()


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("by", ["test", "transfer"])
@pytest.mark.parametrize("text", ["long " * 110, "a <new> word"])
def test_a_test_row_that_does_not_fit_is_refused_before_anything_is_computed(tmp_path, by, text):
    cell = chat_cell(tmp_path, LLAMA)
    there = pd.read_parquet(cell.test)["id"].tolist()
    path = tmp_path / "source" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 257, "content": "<new>", "special": False})
    path.write_text(json.dumps(tokenizer))
    before = rows_of(tmp_path / "reviews.jsonl")
    for name in there:  # a row with another text has another position, perhaps in train
        number = int(name.removeprefix("test-"))
        rows = [row | ({"text": f"{text} {i}"} if i == number else {}) for i, row in enumerate(before, start=1)]
        (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = pd.read_parquet(changed(tmp_path, {}).test)["id"].tolist()
        if name in found[1:]:
            break
    last, place = name, found.index(name)
    limits = {"test": place + 1, "transfer": 0} if by == "test" else {"test": 1, "transfer": place + 1}
    cell = changed(tmp_path, {"limits": limits})
    told = "prompt: [0-9]+ tokens.* context has 512" if "long" in text else "token '<new>' has the id 257"
    with pytest.raises(InputError, match=f"^row {last}: .*{told}"):
        sample(cell)
    assert not cell.samples.exists()
    sample(changed(tmp_path, {"limits": {"test": place, "transfer": 1}}))  # a row that is not used may stay
