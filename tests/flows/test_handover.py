"""`dsm evaluate` and `dsm try` as commands: what they start and print. `test_versus` tests the numbers."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.evidence.statistics import mcnemar, standard_error
from tests.cells import write_cell
from tests.flows.test_cli import call


def found(*, base: bool = True) -> dict[str, Any]:
    """The result of the step: of 100 rows the base gets 60 right, the model the same 60 and ten more."""
    right = {"base": np.arange(100) < 60, "model": np.arange(100) < 70}
    systems = {
        name: {
            key: value
            for measure in ("accuracy", "exact_match", "acc_norm")
            for key, value in ((measure, hits.mean()), (f"{measure}_stderr", standard_error(hits.mean(), 100)))
        }
        for name, hits in right.items()
        if base or name == "model"
    }
    paired = {name: mcnemar(right["model"], right["base"]) for name in ("accuracy", "exact_match", "acc_norm")}
    told = {"n": 100, "model": "data/cells/tiny/reviews/pruned.json", "benchmark": "reviews", "systems": systems}
    return told | {"base": "data/models/tiny" if base else None} | ({"model_vs_base": paired} if base else {})


@pytest.fixture
def started(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A cell with the evaluation above; the arguments of the step, and the stages that run before it."""
    write_cell(project)
    calls: list[Any] = []

    def run_command(name: str, module: str, arguments: list[str], root: Path, **_: Any) -> list[str]:
        calls.append((module, [one for one in arguments if not one.endswith("found.json")]))
        out = Path(arguments[arguments.index("--out") + 1])
        out.write_text(json.dumps(found(base="alone" not in arguments)))
        return []

    monkeypatch.setattr("flows.stages.run_command", run_command)
    monkeypatch.setattr("flows.stages.run_stage", lambda stage, *_, **__: calls.append(stage))
    return calls


def test_evaluate_shows_both_models_and_the_paired_difference(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = call("evaluate", "pruned.json", "--benchmark", "reviews", "--base", "tiny", "--limit", "100")
    assert code == 0
    arguments = ["pruned.json", "--out", "--benchmark", "reviews", "--base", "tiny", "--limit", "100"]
    assert started == ["data@reviews", ("tasks.steps.versus", arguments)]
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "0.600 ± 0.049" in lines["base"]
    assert "0.700 ± 0.046" in lines["model"]
    assert "+0.100 ± 0.030" in lines["difference"]
    assert "0.002" in lines["p"]
    assert max(map(len, lines.values())) <= 80
    low, high = found()["model_vs_base"]["accuracy"]["interval"]
    words = " ".join(out.split())
    assert (
        f"p of the exact McNemar test; 95 % interval of the difference in accuracy {low:+.3f} to {high:+.3f}" in words
    )


def test_evaluate_as_json_and_of_a_model_without_a_base(started: list[Any]) -> None:
    code, out, _ = call("evaluate", "alone", "--json")
    assert (code, list(json.loads(out)["systems"])) == (0, ["model"])
    assert started == [
        ("tasks.steps.versus", ["alone", "--out"])
    ]  # no benchmark is named, so none is brought up to date
    assert "no base: name one with --base" in " ".join(call("evaluate", "alone")[1].split())
    assert call("evaluate", "alone", "--limit", "0")[0] == 2


def test_try_gives_the_terminal_to_the_step(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cell(project)
    calls: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda path, argv, environment: calls.append((argv, environment)))
    assert call("try", "--not a flag", "--json")[0] == 2
    assert call("try", "a film", "--json")[0] == 0
    argv, environment = calls[0]
    names = ["--model", "tiny", "--benchmark", "reviews"]
    assert argv == [sys.executable, "-m", "tasks.steps.try_row", *names, "--json", "--row=a film"]
    assert "DSM_FLOW_PID" not in environment
    assert call("try")[0] == 0
    assert calls[1][0][3:] == names
