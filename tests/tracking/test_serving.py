"""A registered version as MLflow's scoring server calls it: rows of any type, many threads, failures."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException

from tasks.benchmarks.scoring import option_logprobs
from tasks.models.loading import load
from tasks.pipeline.cell import Cell, open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, read_jsonl, sha256_file, write_jsonl, write_parquet, write_text
from tasks.steps.data import store as data
from tasks.steps.register import register
from tasks.tracking.store import tracking_uri
from tests.cells import OPTIONS, servable_cell
from tests.tracking.test_register import ENVIRONMENT, pytestmark  # noqa: F401 - warnings of mlflow

PROMPT = """{{ question }} ({{ year }}, {{ rating }}, {{ fresh }}{% if hint %}, {{ hint }}{% endif %})
A. {{ choices[0] }}
B. {{ choices[1] }}
{{ choices | join("; ") }} {{ years | join(" ") }}
{{ meta.place }} {{ meta.seats[2] }}{% if note is defined %} {{ note }}{% endif %}{{ votes or "" }}
Answer:"""


def rows_of_every_type() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "question": f"film {i}?", "choices": [f"no {i}", f"yes, it's {i}"], "year": 2000 + i, "rating": i / 2,
            "fresh": i % 3 == 0, "hint": f"hint {i}" if i % 2 else None, "years": [i, 7], "votes": i if i % 4 else None,
            "meta": {"place": f"town {i}", "seats": [i, None, "x"]}, "answer": i % 2,
        }
        for i in range(40)
    ]  # fmt: skip
    return [row | ({"note": "old"} if row["year"] % 5 == 0 else {}) for row in rows]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """A registered cell whose prompt is made of columns of every type that JSON has."""
    cell = servable_cell(tmp_path_factory.mktemp("typed"))
    write_jsonl(cell.root / "reviews.jsonl", rows_of_every_type())
    params = yaml.safe_load((cell.root / "params.yaml").read_text())
    source = {"kind": "path", "path": "reviews.jsonl", "sha256": sha256_file(cell.root / "reviews.jsonl")}
    params["benchmarks"]["reviews"] |= {
        "train": {"source": source, "gold": "{{ answer }}"},
        "test": {"split": 20, "seed": 0},
        "prompt": PROMPT,
    }
    write_text(cell.root / "params.yaml", yaml.safe_dump(params))
    cell = open_cell(root=cell.root)
    data(cell)
    test, frame = pd.read_parquet(cell.test), pd.read_parquet(cell.predictions)
    frame[["id", "prompt", "gold"]] = test[["id", "prompt", "gold"]]
    logprobs = option_logprobs(load(cell.root / "edited"), frame["prompt"].tolist(), [OPTIONS] * len(frame))
    frame["pruned"] = [int(row.argmax()) for row in logprobs]
    frame["pruned_logprobs"] = [row.tolist() for row in logprobs]
    write_parquet(cell.predictions, frame)
    with pytest.MonkeyPatch.context() as patch:
        for name in ENVIRONMENT:
            patch.setenv(name, "")
            patch.delenv(name)
        register(cell)
        yield cell
        mlflow.set_tracking_uri("")
        mlflow.set_registry_uri("")


def loaded(cell: Cell) -> Any:
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it, to the store of the previous cell
    mlflow.set_tracking_uri(tracking_uri(cell.root))
    return mlflow.pyfunc.load_model(f"models:/{cell.name}@challenger")


def ask(model: Any, rows: list[dict[str, Any]], key: str = "dataframe_records") -> list[dict[str, Any]]:
    """The answers of the scoring server to rows in JSON."""
    from mlflow.pyfunc.scoring_server import invocations  # warns as it is imported

    answer = invocations(json.dumps({key: rows}), "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200
    found: list[dict[str, Any]] = json.loads(answer.response)["predictions"]
    return found


def evaluated(cell: Cell) -> list[dict[str, Any]]:
    """The source's rows that are in predictions.parquet, without their label."""
    rows = read_jsonl(cell.root / "reviews.jsonl")
    chosen = [rows[int(name.removeprefix("test-")) - 1] for name in pd.read_parquet(cell.predictions)["id"]]
    return [{name: value for name, value in row.items() if name != "answer"} for row in chosen]


def test_rows_of_every_type_are_rendered_as_by_the_workflow(typed: Cell) -> None:
    model, rows = loaded(typed), evaluated(typed)
    served = model.unwrap_python_model()
    prompts = pd.read_parquet(typed.predictions)["prompt"].tolist()
    frame = pd.DataFrame(json.loads(json.dumps(rows)))
    assert served._asked(frame)[0] == prompts
    assert [served._asked(frame.iloc[[i]])[0][0] for i in range(len(rows))] == prompts
    expected = served.answer(prompts).to_dict("records")
    assert ask(model, rows) == expected
    for row, answer in zip(rows, expected, strict=True):
        (alone,) = ask(model, [row])
        assert alone["option"] == answer["option"]
        assert alone["p(positive)"] == pytest.approx(answer["p(positive)"], abs=1e-5)
    types = {spec.name: (str(spec.type), spec.required) for spec in model.metadata.get_input_schema()}
    assert types["question"] == ("DataType.string", True)
    assert types["choices"] == ("Array(string)", True)
    assert types["years"] == ("Array(long)", True)
    assert types["rating"] == ("DataType.double", True)
    assert types["note"] == ("Any", False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"choices": "['yes', 'no']"}, "Expected data to be list or numpy array"),
        ({"years": [1.5]}, "years"),
        ({"year": "2001"}, "row 1: year must be an integer, not '2001'"),
        ({"year": 2001.5}, "row 1: year must be an integer, not 2001.5"),
        ({"year": None}, "row 1: year must be an integer, not None"),
        ({"rating": "good"}, "rating"),
        ({"fresh": "false"}, "row 1: fresh must be a boolean, not 'false'"),
        ({"hint": 3}, "row 1: hint must be null or a text, not 3"),
        ({"meta": "town"}, "row 1: meta must be an object, not 'town'"),
        ({"meta": {}}, "has no attribute 'place'"),
    ],
)
def test_another_type_is_refused(typed: Cell, change: dict[str, Any], told: str) -> None:
    with pytest.raises(MlflowException) as refused:
        ask(loaded(typed), [evaluated(typed)[0] | change])
    assert refused.value.get_http_status_code() == 400
    sent = json.loads(refused.value.serialize_as_json())
    assert told in sent["message"]
    assert "stack_trace" not in sent


def test_a_new_kind_of_column_is_a_new_version(typed: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    register(typed)
    assert "already registered as version 1" in capsys.readouterr().out
    assert read_json(typed.columns)["kinds"]["hint"] == ["null", "text"]


@pytest.mark.parametrize("error", [RuntimeError("in /a/path"), InputError("model", "its logits are NaN"), KeyError(1)])
def test_a_failure_of_the_model_is_told_to_the_log_alone(
    typed: Cell, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise error

    model, row = loaded(typed), evaluated(typed)[0]
    module = type(model.unwrap_python_model())._table.__globals__
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module, "answers_unedited", fail)
        with pytest.raises(MlflowException) as failed:
            ask(model, [row])
    sent = json.loads(failed.value.serialize_as_json())
    assert failed.value.get_http_status_code() == 500
    assert sent["message"] == "the model failed; the server's log says why"
    assert "stack_trace" not in sent
    assert str(error) in caplog.text
    assert len(ask(model, [row])) == 1  # the next request is answered


def test_two_models_answer_many_threads_as_they_answer_one(typed: Cell, tmp_path: Path) -> None:
    first, other = loaded(typed), servable_cell(tmp_path)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    register(other)
    second = loaded(other)
    asked = [pair for i, row in enumerate(evaluated(typed)) for pair in ((first, row), (second, {"text": "long " * i}))]
    expected = [ask(model, [row]) for model, row in asked]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda one: ask(one[0], [one[1]]), asked * 3)) == expected * 3
