"""A whole life on a real server: a first run, new rows make a challenger, a rollback, dead runs end.

Runs are asked for; that a schedule fires by itself is shown in `test_schedule`.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from tasks.runtime.files import read_json, sha256_file, write_text
from tests.faults.fault_project import NAME
from tests.faults.kills import forget
from tests.operations.operated import Operated, in_project


def locked(root: Path) -> dict[str, str]:
    """The hashes of all outputs in dvc.lock."""
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_from_the_first_run_to_a_rollback(operated: Operated) -> None:
    root, client = operated.root, operated.client
    assert "deployment retrain/often: 0 0 1 1 * UTC" in operated.dsm("deploy")

    # A run that finds a step to do ends with a registered challenger.
    forget(root, "score@tiny-reviews")
    operated.trigger()
    with operated.worker():
        first = operated.wait("the first run", lambda: operated.runs("COMPLETED"))[0]
    steps = operated.task_runs(operated.runs("COMPLETED", flow="adapt")[0]["id"])
    assert steps["score tiny-reviews"] == "Ran"
    assert steps["register tiny-reviews"] == "Completed"
    version = client.get_model_version_by_alias(NAME, "challenger")
    assert int(version.version) == 1
    run = client.get_run(version.run_id)
    assert (run.data.tags["flow_run_id"], run.data.tags["flow_run_name"]) == (first["id"], first["name"])
    assert "mlflow.parentRunId" not in run.data.tags
    assert any(name.startswith("system/") for name in run.data.metrics)
    reason = version.tags["reason"]
    assert reason.startswith("no champion yet; ")
    if "not detectably better" in reason:
        operated.dsm("promote", "1", "--why", "a first champion, to have one")
    assert operated.aliases() == {"challenger": 1, "champion": 1}

    # New rows: the next run takes them, and the rule decides.
    before = sha256_file(root / "reviews.jsonl")
    rows = [json.dumps({"text": f"good warm film {i}", "label": i % 2}) + "\n" for i in range(100, 112)]
    write_text(root / "reviews.jsonl", (root / "reviews.jsonl").read_text() + "".join(rows))
    operated.trigger()
    with operated.worker():
        operated.wait(
            "the second version to be judged",
            lambda: [v for v in client.search_model_versions(f"name = '{NAME}'") if v.tags.get("reason")][1:],
        )
        done = operated.wait("its run to end", lambda: operated.runs("COMPLETED")[1:])
    assert done
    pinned = yaml.safe_load((root / "params.yaml").read_text())["benchmarks"]["reviews"]["train"]["source"]["sha256"]
    assert pinned == sha256_file(root / "reviews.jsonl") != before
    decision = read_json(
        Path(client.download_artifacts(client.get_model_version(NAME, "2").run_id, "promotion.json", str(root.parent)))
    )
    assert decision["rule"] == {"alpha": 1.0, "margin": 0.9}
    assert decision["champion"] == 1
    assert operated.aliases() == {"challenger": 2, "champion": 2 if decision["promoted"] else 1}

    # A rollback with one command, which is recorded.
    now = operated.aliases()["champion"]
    operated.dsm("promote", str(3 - now), "--why", "a try")
    told = operated.dsm("versions")
    assert f"champion {now} -> {3 - now}, by " in told
    assert ": a try" in told

    # A due run without new rows computes nothing; a dead run does not stay `Running`.
    hashes = locked(root)
    operated.trigger()
    with operated.worker() as worker:
        running = operated.wait("a run to kill", lambda: operated.runs("RUNNING"))[0]
        processes = operated.wait("its process", lambda: [p for p in in_project(root) if p.pid != worker.pid])
        for process in [worker, *processes]:
            os.kill(process.pid, signal.SIGKILL)
        silent, foreign = operated.begin("adapt"), operated.begin("somebody else's")
        crashed = operated.wait("the server to notice", lambda: operated.runs("CRASHED"))
    assert running["id"] in [run["id"] for run in crashed]
    for flow in ("retrain", "retrain cell", "adapt"):
        operated.wait(f"no {flow} to be left running", lambda flow=flow: not operated.runs("RUNNING", flow=flow))
    assert silent in [run["id"] for run in operated.runs("CRASHED", flow="adapt")]
    assert foreign in [run["id"] for run in operated.runs("RUNNING", flow="somebody else's")]
    ended = len(operated.runs("COMPLETED"))
    operated.trigger()
    with operated.worker():
        operated.wait("the run after it", lambda: operated.runs("COMPLETED")[ended:])
    assert locked(root) == hashes
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2
    assert operated.aliases()["champion"] == 3 - now
    until = time.monotonic() + 60
    while in_project(root) and time.monotonic() < until:
        time.sleep(1)
    assert in_project(root) == []
