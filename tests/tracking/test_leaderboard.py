"""The table and the view on MLflow's page of the experiment."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tasks.tracking import leaderboard
from tasks.tracking.database import experiment_in, make_database, sqlite_uri
from tasks.tracking.leaderboard import NOTE, VIEW_TAG, results_page, write_leaderboard

RESULT = {
    "n": 300.0, "accuracy_base": 0.597, "accuracy_pruned": 0.63, "difference": 0.033, "p_value": 0.41,
    "exact_match_base": 0.01, "exact_match_pruned": 0.513, "exact_match_difference": 0.503,
    "exact_match_p_value": 1e-9, "accuracy_random": 0.615,
}  # fmt: skip


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    uri = sqlite_uri(tmp_path / "mlflow.db")
    make_database(uri)
    return MlflowClient(uri, uri)


def log(client: MlflowClient, experiment: str, benchmark: str, metrics: dict[str, float], end: str = "FINISHED") -> str:
    tags = {"cell": f"tiny-{benchmark}", "model": "tiny", "benchmark": benchmark}
    run = client.create_run(experiment, tags=tags)
    for name, value in metrics.items():
        client.log_metric(run.info.run_id, name, value)
    client.set_terminated(run.info.run_id, end)
    return str(run.info.run_id)


def tags(client: MlflowClient, experiment: str) -> dict[str, Any]:
    return dict(client.get_experiment(experiment).tags)


def test_the_table_has_the_newest_finished_run_of_every_cell(client: MlflowClient) -> None:
    experiment = client.create_experiment("e")
    log(client, experiment, "reviews", RESULT | {"accuracy_pruned": 0.111})
    newest = log(client, experiment, "reviews", RESULT)
    log(client, experiment, "reviews", RESULT | {"accuracy_pruned": 0.222}, "FAILED")
    log(client, experiment, "a-run-of-an-earlier-version", {"n": 300.0})
    log(client, experiment, "boolq", RESULT)
    write_leaderboard(client, experiment)
    note = tags(client, experiment)[NOTE]
    assert note.startswith("Results of 2 cells, the newest of each")
    rows = [line for line in note.splitlines() if "](#/" in line]
    assert [row.split("]")[0] for row in rows] == ["| [tiny on boolq", "| [tiny on reviews"]
    assert f"(#/experiments/{experiment}/runs/{newest})" in rows[1]
    for text in ("300", "0.597 → 0.630 (+0.033, p = 0.41)", "0.010 → 0.513 (+0.503, p < 0.001)", "0.615"):
        assert text in rows[1]


def test_the_saved_view_selects_both_measures(client: MlflowClient) -> None:
    experiment = client.create_experiment("e")
    write_leaderboard(client, experiment)
    saved = json.loads(tags(client, experiment)[VIEW_TAG])
    assert saved["name"] == "Results"
    assert isinstance(saved["createdAt"], int)
    state = json.loads(saved["state"])
    assert {"metrics.`accuracy_pruned`", "metrics.`exact_match_pruned`"} <= set(state["selectedColumns"])
    assert set(state["columnWidths"]) == set(state["columnOrder"]) == set(state["selectedColumns"])
    assert results_page(experiment).startswith(f"/#/experiments/{experiment}/runs?viewStateShareKey=results")


def test_nothing_is_written_where_nothing_changed(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = client.create_experiment("e")
    log(client, experiment, "reviews", RESULT)
    write_leaderboard(client, experiment)
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", lambda *_: pytest.fail("written again"))
    write_leaderboard(client, experiment)


def test_many_cells_fit_into_a_tag(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard, "NOTE_LIMIT", 1000)
    experiment = client.create_experiment("e")
    for number in range(9):
        log(client, experiment, f"b{number}", RESULT)
    write_leaderboard(client, experiment)
    note = tags(client, experiment)[NOTE]
    shown = note.count("](#/")
    assert 0 < shown < 9
    assert f"| {9 - shown} more: see the runs below |" in note
    assert len(note) < 1400


def test_the_experiment_is_found_without_mlflow(client: MlflowClient, tmp_path: Path) -> None:
    uri = sqlite_uri(tmp_path / "mlflow.db")
    assert experiment_in(uri, "e") is None
    experiment = client.create_experiment("e")
    assert experiment_in(uri, "e") == experiment
    assert experiment_in("http://127.0.0.1:5000", "e") is None
    assert experiment_in(sqlite_uri(tmp_path / "none.db"), "e") is None
    (tmp_path / "damaged.db").write_bytes(b"no database" * 100)
    assert experiment_in(sqlite_uri(tmp_path / "damaged.db"), "e") is None
