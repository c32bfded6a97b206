"""Steps, `dvc repro`, `register` and the flow are killed; the next undisturbed run gives the same bytes.

Each once in the middle of its work. Slow: at random moments, other ones in every run; DSM_FAULT_ROUNDS says how many
rounds there are, DSM_FAULT_SEED repeats those of another run, which printed its seed.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.mending import keep, mend
from flows.stages import STEPS
from tests.faults.kills import (
    DSM,
    DVC,
    all_gone,
    assert_registered_once,
    finish,
    forget,
    kill_after,
    leftovers,
    locked,
    results,
    start,
    step_process,
)

ROUNDS = int(os.environ.get("DSM_FAULT_ROUNDS", "30"))
SEED = int(os.environ.get("DSM_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
REGISTER, FLOW = 13, 14  # of every 30 rounds, whose other ones kill a step, or the DVC above it
START_DVC = 1.5  # seconds before it starts a step

pytestmark = [
    pytest.mark.real,
    pytest.mark.usefixtures("prefect_home"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]
seconds = dict.fromkeys([*STEPS, "register"], 5.0)  # that runs take: a guess, until one has been measured

Process = subprocess.Popen[bytes] | psutil.Process


def stages(root: Path) -> list[str]:
    return list(locked(root))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kind", ["step", "register", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dvc", "flow"))]
)
def test_a_kill_in_the_middle(finished_root: Path, kind: str) -> None:
    """kill -9 when the step `score` has noted its first parts, `register` its first artifacts."""
    begun = "mlartifacts" if kind == "register" else "data/scratch/tiny/reviews/score.jsonl"

    def kill(target: Process) -> bool:
        while target.poll() is None if isinstance(target, subprocess.Popen) else target.is_running():
            if (finished_root / begun).exists():
                target.kill()
                return True
            time.sleep(0.005)
        return False

    assert killed_and_run_again(finished_root, kind, "score@tiny-reviews", kill), "it ended before it was seen at work"


# What a step writes, and a program that ends itself in the tenth turn of a layer.
MADE_BY = {
    "score": ["scores.safetensors"],
    "search": ["grid.parquet"],
    "evaluate": ["predictions.parquet", "evaluation.json"],
    "transfer": ["transfer.parquet", "transfer.json"],
}
KILLED_IN_THE_MIDDLE = """
import os, signal
from tasks.models.stack import DecoderStack
turn, turns = DecoderStack.turn, []
def counted(self, index):
    turns.append(index)
    if len(turns) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return turn(self, index)
DecoderStack.turn = counted
"""
SWEEPING = """
import tasks.models.memory
tasks.models.memory.at_hand = lambda model: False
from tasks.pipeline.step import run_step
from tasks.steps.{step} import {step}
run_step({step}, description="")
"""


@pytest.mark.parametrize(
    "step", ["score", *(pytest.param(step, marks=pytest.mark.slow) for step in ("search", "evaluate", "transfer"))]
)
def test_a_kill_in_the_middle_of_a_sweep(finished_root: Path, step: str) -> None:
    """kill -9 in a layer's turn, where weights do not stay in memory; the same bytes when it runs again."""
    undisturbed = results(finished_root)
    for path in (finished_root / "data" / "cells").rglob("*"):
        if path.name in MADE_BY[step]:
            path.unlink()
    program = SWEEPING.format(step=step)
    killed = program.replace("run_step(", KILLED_IN_THE_MIDDLE + "run_step(")
    process = start(finished_root, "-c", killed)
    assert process.wait(120) == -signal.SIGKILL
    assert all_gone(finished_root)
    assert results(finished_root) == {p: h for p, h in undisturbed.items() if Path(p).name not in MADE_BY[step]}
    finish(finished_root, "-c", program)
    assert results(finished_root) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_kill_at_a_random_moment(finished_root: Path, round_: int) -> None:
    rng = random.Random(f"{SEED} {round_}")
    number = rng.choice([signal.SIGKILL, signal.SIGTERM])
    stage = stages(finished_root)[round_ % len(STEPS)]
    step = stage.partition("@")[0]
    if round_ % 30 == FLOW:
        kind, after = "flow", rng.uniform(0, 20 + seconds[step] + seconds["register"])
    elif round_ % 30 == REGISTER:
        kind, after = "register", rng.uniform(0, seconds["register"])
    else:
        kind = rng.choice(["step", "dvc"])
        after = rng.uniform(0, seconds[step] + (START_DVC if kind == "dvc" else 0))
    print(f"DSM_FAULT_SEED={SEED}, round {round_}: {number.name} to {kind} {stage} after {after:.2f} s")
    sent = killed_and_run_again(finished_root, kind, stage, lambda target: kill_after(target, after, number))
    print("killed" if sent else "late")


def killed_and_run_again(root: Path, kind: str, stage: str, kill: Callable[[Process], bool]) -> bool:
    """Runs what is to be killed on a finished project, then the same undisturbed, and compares with what was there.

    Args:
        kind: `step` and `dvc`: the step itself or the DVC above it, of one stage; `register`; `flow`: `dsm run`.
        stage: what is not finished any more.
        kill: sends a signal to the process; whether it was still running.

    Returns:
        Whether it was killed.
    """
    step, undisturbed, lock = stage.partition("@")[0], results(root), locked(root)
    argv = {"register": ("-m", "tasks.steps.register"), "flow": (*DSM, "run")}.get(
        kind, (*DVC, "repro", "--single-item", stage)
    )
    if kind != "register":
        forget(root, stage)
    if kind in ("step", "dvc"):
        keep(root)
    process = start(root, *argv)
    try:
        target = step_process(root) if kind == "step" else process
        sent = target is not None and kill(target)
        # A signal may come when all is written and the interpreter is about to exit.
        complete = process.wait(240) != 0 or not sent or results(root) == undisturbed
        assert complete, "a killed run said that all is well"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert all_gone(root)

    if kind in ("step", "dvc") and (mended := mend(root)):  # `dsm run` does it by itself, `dvc repro` does not
        print(f"killed in the instant in which DVC wrote {mended}")
    started = time.monotonic()
    said = finish(root, *((*DVC, "repro") if kind in ("step", "dvc") else argv))
    if f"Running stage '{stage}'" in said:
        seconds[step] = time.monotonic() - started - START_DVC
    if kind == "register":
        seconds["register"] = time.monotonic() - started
    assert results(root) == undisturbed
    assert locked(root) == lock
    assert leftovers(root) == []
    assert all_gone(root)
    if kind in ("flow", "register"):
        assert_registered_once(root)
    return sent
