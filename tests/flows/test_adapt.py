"""The flow on a project of stand-in steps, on Prefect's ephemeral server."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.stages import STEPS, Busy, StepFailed
from tasks.pipeline.cell import open_cell
from tasks.runtime.errors import InputError
from tests.flows.stand_in_project import cell_project, ran


@pytest.mark.usefixtures("_prefect")
def test_the_flow_runs_what_is_stale_and_shows_it(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    from flows.adapt import adapt

    cell_project(project)
    states = [adapt("tiny", "reviews", return_state=True)]
    result = states[0].result()
    assert (result.model, result.n, result.layer, result.fraction) == ("tiny", 60, 2, 0.10)
    assert result.accuracy.pruned > result.accuracy.base
    assert ran(project) == [*STEPS, "register"]
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines() if not line.startswith(" ")] == [
        *([step, "ran"] for step in STEPS),
        ["register", "done"],
    ]
    assert "  search writes a line" in out
    assert err == ""  # Prefect's own lines go to its server

    (project / "data" / "cells" / "tiny" / "reviews" / "report.html").unlink()
    monkeypatch.setattr("flows.adapt.stages_of", lambda *_: [f"{step}@tiny-reviews" for step in ("prune", "report")])
    states.append(adapt("tiny", "reviews", return_state=True))
    assert ran(project) == ["register"]
    out, _ = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines() if not line.startswith(" ")] == [
        ["prune", "cached"],
        ["report", "restored"],
        ["register", "done"],
    ]
    flows = [state.state_details.flow_run_id for state in states]
    with get_client(sync_client=True) as client:
        runs = client.request("POST", "/task_runs/filter", json={}).json()
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    first, second = ({run["name"]: run["state_name"] for run in runs if run["flow_run_id"] == str(id)} for id in flows)
    assert first == {
        **{f"{step} tiny-reviews": "Ran" for step in STEPS[2:]},
        "model tiny": "Ran",
        "data reviews": "Ran",
        "register tiny-reviews": "Completed",
    }
    assert second == {
        "prune tiny-reviews": "Cached",
        "report tiny-reviews": "Restored",
        "register tiny-reviews": "Completed",
    }
    shown = [artifact["data"] for artifact in artifacts if artifact["key"] == "tiny-reviews"]
    assert len(shown) == 2
    assert f"{result.exact_match.base:.3f} → {result.exact_match.pruned:.3f}" in shown[-1]
    assert f"`{project / 'data/cells/tiny/reviews/report.html'}`" in shown[-1]
    assert "file:" not in shown[-1]  # a browser does not follow such a link from a page served over http
    assert "](" not in shown[-1]  # without a tracking server there is nothing to link to


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        (None, "run `dsm ui`"),
        ("http://127.0.0.1:5000/", "[tiny-reviews](http://127.0.0.1:5000/#/models/tiny-reviews)"),
        ("http://me:secret@tracker:5000", "[tiny-reviews](http://tracker:5000/#/models/tiny-reviews)"),
        ("postgresql://me:secret@tracker/mlflow", "run `dsm ui`"),
    ],
)
def test_the_artifact_has_no_link_that_leads_nowhere(
    project: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None, told: str
) -> None:
    from flows.adapt import list_of_files

    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    cell_project(project)
    text = list_of_files(open_cell("tiny", "reviews"))
    assert told in text
    assert "`dsm export --model tiny --benchmark reviews --out DIR`" in text
    assert "secret" not in text
    assert "file:" not in text


@pytest.mark.usefixtures("_prefect")
def test_bad_input_of_a_step_ends_the_flow_at_once(project: Path) -> None:
    from flows.adapt import adapt

    cell_project(project)
    refuse = "open('ran.txt', 'a').write('x\\n')\nimport os; os.write(2, b'error: model: no gated MLP\\n'); exit(2)"
    (project / "stand_in.py").write_text(refuse)
    with pytest.raises(InputError, match="model: no gated MLP"):
        adapt("tiny", "reviews")
    assert ran(project) == ["x"]  # not tried again, and no later step runs


@pytest.mark.usefixtures("_prefect")
def test_each_line_of_a_served_run_has_time_and_cell_and_a_failure_its_reason(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.retrain import retrain

    cell_project(project)
    monkeypatch.setenv("DSM_SERVED", "1")
    monkeypatch.setattr("flows.retrain.refresh", lambda *_: ["train.source.sha256: changed"])
    monkeypatch.setattr("flows.retrain.is_unpinned", lambda *_: False)
    refuse = "import os, sys\nprint('reads rows', file=sys.stderr)\n"
    refuse += "if sys.argv[1] == 'data': os.write(2, b'error: train: row 3: label: is null\\n'); exit(2)\n"
    (project / "stand_in.py").write_text(refuse + (project / "stand_in.py").read_text())
    state = retrain(["tiny"], ["reviews"], return_state=True)
    assert state.is_failed()
    *lines, last = capfd.readouterr().out.splitlines()
    stamped = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
    assert all(stamped.match(line) for line in (*lines, last)), lines
    assert all(line[20:].startswith("tiny-reviews ") for line in lines), lines
    told = [line[20:].removeprefix("tiny-reviews ") for line in lines]
    assert told[0] == "refresh   train.source.sha256: changed"
    assert "  reads rows" in told
    assert told[-1] == "failed    train: row 3: label: is null"
    assert re.fullmatch(r"retrain \S+: Failed: retrain: tiny-reviews: train: row 3: label: is null", last[20:])


def test_what_is_tried_again() -> None:
    from prefect.states import Failed

    from flows.adapt import KILLED, _is_worth_another

    def again(error: Exception, count: int) -> bool:
        return _is_worth_another(None, SimpleNamespace(run_count=count), Failed(data=error))

    assert again(Busy("b"), 50)
    assert not again(StepFailed("s", "p"), 1)
    assert not again(InputError("f", "p"), 1)
    killed = StepFailed("s", "p", killed=True)
    assert [again(killed, count) for count in (1, KILLED, KILLED + 1)] == [True, True, False]
