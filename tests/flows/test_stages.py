"""Calls of DVC on temporary projects."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from flows.stages import STEPS, Busy, StepFailed, plan_stages, run_command, run_stage, stages_of
from tasks.runtime.errors import InputError
from tests.flows.stand_in_project import REAL, cell_project, make_project, script

# A step that starts a child, as a data loader would; both note their process ids.
FAMILY = """\
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids.tmp").write_text(f"{os.getpid()} {child.pid}")
os.replace("pids.tmp", "pids.txt")
time.sleep(600)
"""


def pids(root: Path) -> list[int]:
    """Waits for a FAMILY to be complete."""
    give_up = time.monotonic() + 30
    while not (root / "pids.txt").exists():
        assert time.monotonic() < give_up, "the stage did not start"
        time.sleep(0.05)
    return [int(pid) for pid in (root / "pids.txt").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(numbers: list[int], seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while any(map(alive, numbers)) and time.monotonic() < give_up:
        time.sleep(0.05)
    return not any(map(alive, numbers))


def test_the_steps_are_those_of_dvc_yaml_in_an_order_that_works() -> None:
    stages = yaml.safe_load((REAL / "dvc.yaml").read_text())["stages"]
    assert {step for step, stage in stages.items() if "matrix" in stage} == {"model", "data"}
    over = {step: stage["foreach"] for step, stage in stages.items() if "foreach" in stage}
    assert {step for step, what in over.items() if what == "${pipeline.cells}"} == set(STEPS) - {"model", "data"}
    assert set(over) - set(STEPS) == {"study", "nsa", "sparsify"}
    stages = {step: stage.get("do", stage) for step, stage in stages.items()}
    seen: set[str] = set()
    for step in STEPS:
        made = {out for name in seen for kind in ("outs", "metrics") for out in stages[name].get(kind, [])}
        assert {dep for dep in stages[step]["deps"] if dep.startswith("data/")} <= made
        seen.add(step)


def test_a_stage_runs_once_then_is_cached_then_restored(project: Path, said: list[str]) -> None:
    write = script(project, "a.py", "import sys; print('half way', file=sys.stderr); open('out.txt', 'w').write('1')")
    make_project(project, {"a": {"matrix": {"m": ["x"]}, "cmd": write, "deps": ["a.py"], "outs": ["out.txt"]}})
    assert run_stage("a@x", project, timeout=60, log=said.append) == "ran"
    assert said[0] == "a: out of date, running"
    assert "half way" in said
    before = list(said)
    assert run_stage("a@x", project, timeout=60, log=said.append) == "cached"
    assert said == before
    (project / "out.txt").unlink()
    assert plan_stages(["a@x"], project) == {"a@x": "restore"}
    assert run_stage("a@x", project, timeout=60, log=said.append) == "restored"
    assert (project / "out.txt").read_text() == "1"
    assert said.count("half way") == 1


def test_a_stage_uses_the_python_of_this_process(
    project: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no virtual environment is activated
    write = script(project, "a.py", "import sys; open('out.txt', 'w').write(sys.prefix)")
    make_project(project, {"a": {"cmd": write, "outs": ["out.txt"]}})
    run_stage("a", project, timeout=60, log=said.append)
    assert (project / "out.txt").read_text() == sys.prefix


def test_bad_input_of_a_step_arrives_as_its_line(project: Path, said: list[str]) -> None:
    bad = script(project, "a.py", "import sys; print('error: options: two: alike', file=sys.stderr); sys.exit(2)")
    make_project(project, {"a": {"cmd": bad, "outs": ["out.txt"]}})
    with pytest.raises(InputError) as told:
        run_stage("a", project, timeout=60, log=said.append)
    assert str(told.value) == "options: two: alike"
    assert not any("alike" in line or "ERROR" in line for line in said)  # it is reported once, by the caller


def test_a_failing_step_is_told_in_one_line(project: Path, said: list[str]) -> None:
    bad = script(
        project, "a.py", "import sys; print('2/3 is busy', file=sys.stderr); raise ValueError('no such layer')"
    )
    make_project(
        project,
        {
            "a": {"cmd": bad, "outs": ["out.txt"]},
            "killed": {"cmd": "kill -9 $$", "outs": ["b.txt"]},
            "lazy": {"cmd": "true", "outs": ["c.txt"]},
            "usage": {"cmd": "echo 'usage: x' >&2; exit 2", "outs": ["d.txt"]},
        },
    )
    with pytest.raises(StepFailed) as told:
        run_stage("a", project, timeout=60, log=said.append)
    assert str(told.value) == "a: exited with 1: ValueError: no such layer"
    assert any("Traceback" in line for line in told.value.lines)
    with pytest.raises(StepFailed, match="killed: exited with -9"):
        run_stage("killed", project, timeout=60, log=said.append)
    with pytest.raises(StepFailed, match=r"lazy: .*c\.txt"):
        run_stage("lazy", project, timeout=60, log=said.append)
    with pytest.raises(StepFailed, match="usage: exited with 2: usage: x"):
        run_stage("usage", project, timeout=60, log=said.append)
    with pytest.raises(StepFailed, match=r"unknown: .*not found"):
        run_stage("unknown", project, timeout=60, log=said.append)


def test_a_timeout_ends_the_whole_group(project: Path, said: list[str]) -> None:
    make_project(project, {"a": {"cmd": script(project, "a.py", FAMILY), "outs": ["out.txt"]}})
    with pytest.raises(StepFailed, match=r"took longer than 6 s .*DSM_STEP_TIMEOUT"):
        run_stage("a", project, timeout=6, log=said.append)
    assert not any(map(alive, pids(project)))
    assert not any("KeyboardInterrupt" in line for line in said)
    # dvc was asked to stop first: it left no lock behind.
    assert '"cmd"' not in (project / ".dvc" / "tmp" / "rwlock").read_text()


def test_who_ignores_every_request_is_killed(project: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.processes.SIGNALS", [(s, 0.3) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)])
    deaf = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    )
    script(project, "deaf.py", deaf + FAMILY)
    with pytest.raises(StepFailed, match="took longer"):
        run_command("deaf", "deaf", [], project, timeout=2, log=said.append)
    assert not any(map(alive, pids(project)))


def test_an_exception_ends_the_whole_group(project: Path, said: list[str]) -> None:
    """Ctrl-C and Prefect's cancellation arrive as an exception in the thread that waits."""
    script(project, "family.py", FAMILY)

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(KeyboardInterrupt):
            run_command("family", "family", [], project, timeout=60, log=said.append)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not any(map(alive, pids(project)))


def test_a_step_ends_soon_after_its_flow_was_killed(project: Path) -> None:
    step = "from tasks.pipeline.step import _exit_with_parents\n_exit_with_parents()\n" + FAMILY
    make_project(project, {"a": {"cmd": script(project, "a.py", step), "outs": ["out.txt"]}})
    flow = (
        "from pathlib import Path; from flows.stages import run_stage; "
        "run_stage('a', Path.cwd(), timeout=600, log=print)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", flow], cwd=project, stdout=subprocess.DEVNULL, env=with_repository()
    )
    try:
        family = pids(project)
        time.sleep(0.5)
    finally:
        parent.kill()
        parent.wait()
    assert gone(family, seconds=5)


def test_a_stage_that_another_process_runs_is_busy(project: Path, said: list[str]) -> None:
    make_project(project, {"a": {"cmd": script(project, "a.py", FAMILY), "outs": ["out.txt"]}})
    other = subprocess.Popen(
        [sys.executable, "-P", "-m", "dvc", "repro", "--single-item", "a"],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=with_repository(),
    )
    try:
        family = pids(project)
        with pytest.raises(Busy, match=r"out\.txt' is busy.*\(PID \d+\)"):
            run_stage("a", project, timeout=60, log=said.append)
        assert all(map(alive, family))
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def test_a_step_that_reads_does_not_block_a_cached_stage(project: Path, said: list[str]) -> None:
    """Two cells share their model: while one computes, the other finds it up to date."""
    script(project, "a.py", "open('out.txt', 'w').write('1')")
    script(project, "b.py", FAMILY)
    make_project(
        project,
        {
            "a": {"cmd": "python a.py", "deps": ["a.py"], "outs": ["out.txt"]},
            "b": {"cmd": "python b.py", "deps": ["out.txt"], "outs": ["b.txt"]},
        },
    )
    run_stage("a", project, timeout=60, log=said.append)
    other = subprocess.Popen(
        [sys.executable, "-P", "-m", "dvc", "repro", "--single-item", "b"],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=with_repository(),
    )
    try:
        pids(project)
        assert run_stage("a", project, timeout=60, log=said.append) == "cached"
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def test_nothing_has_run_yet(project: Path) -> None:
    cell_project(project)
    assert set(plan_stages(stages_of("tiny", "reviews"), project).values()) == {"run"}


def test_the_plan_follows_the_graph(finished_stand_ins: Path) -> None:
    project, stages = finished_stand_ins, stages_of("tiny", "reviews")
    assert set(plan_stages(stages, project).values()) == {"cached"}

    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("control_seeds:", "control_seeds:\n  - 7"))
    plan = plan_stages(stages, project)
    assert [stage for stage in stages if plan[stage] == "run"] == ["evaluate@tiny-reviews", "report@tiny-reviews"]
    (project / "params.yaml").write_text(params)

    for path in (project / "data" / "cells").rglob("*.*"):
        path.unlink()
    plan = plan_stages(stages, project)
    assert [plan[stage] for stage in stages] == ["cached", "cached", *["restore"] * 7]

    grids = project / ".dvc" / "cache" / "files" / "md5"
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    md5 = lock["search@tiny-reviews"]["outs"][0]["md5"]
    (grids / md5[:2] / md5[2:]).unlink()
    plan = plan_stages(stages, project)
    assert [plan[stage] for stage in stages[2:5]] == ["restore", "restore", "run"]


def with_repository() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(REAL)}
