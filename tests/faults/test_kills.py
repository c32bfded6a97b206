"""Steps, `dvc repro` and the flow are killed at random moments; the next undisturbed run gives the same bytes.

DSM_FAULT_ROUNDS says how many rounds there are, DSM_FAULT_SEED which.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from tests.faults.project import real_project

ROUNDS = int(os.environ.get("DSM_FAULT_ROUNDS", "30"))
SEED = int(os.environ.get("DSM_FAULT_SEED", "0"))
REGISTER, FLOW = 13, 14  # of every 15 rounds
START_DVC = 1.5  # seconds before it starts a step

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]


@dataclass
class Undisturbed:
    """A finished project, what an undisturbed run made of it, and how many seconds runs of it take by now."""

    root: Path
    results: dict[str, str]
    locked: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    root = real_project(tmp_path_factory.mktemp("kills") / "project").root
    started = time.monotonic()
    finish(root, *DVC, "repro")
    whole = time.monotonic() - started
    yield Undisturbed(root, results(root), locked(root), dict.fromkeys([*STEPS, "register"], whole / len(STEPS) / 2))
    print(
        f"{sum(killed.values())} of {sum(killed.values()) + sum(late.values())} rounds killed: {killed}; late: {late}"
    )


killed: dict[str, int] = {}
late: dict[str, int] = {}


def count(what: str, number: int, sent: bool) -> None:
    name = f"{what} {signal.Signals(number).name}"
    (killed if sent else late)[name] = (killed if sent else late).get(name, 0) + 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_kill_at_a_random_moment(undisturbed: Undisturbed, round_: int) -> None:
    root = undisturbed.root
    rng = random.Random(f"{SEED} {round_}")
    number = rng.choice([signal.SIGKILL, signal.SIGTERM])
    stage = list(undisturbed.locked)[round_ % len(STEPS)]
    step = stage.partition("@")[0]
    if round_ % 15 == FLOW:
        kind, after = "flow", rng.uniform(0, 20 + undisturbed.seconds[step] + undisturbed.seconds["register"])
        argv = (*DSM, "run")
    elif round_ % 15 == REGISTER:
        kind, after = "register", rng.uniform(0, undisturbed.seconds["register"])
        argv = ("-m", "tasks.register")
    else:
        kind = rng.choice(["step", "dvc"])
        after = rng.uniform(0, undisturbed.seconds[step] + (START_DVC if kind == "dvc" else 0))
        argv = (*DVC, "repro", "--single-item", stage)
    print(f"seed {SEED}, round {round_}: {number.name} to {kind} {stage} after {after:.2f} s")

    if kind in ("flow", "register"):
        for path in (root / "mlflow.db", root / "mlartifacts"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind != "register":
        forget(root, stage)
    if kind in ("step", "dvc"):
        keep(root)
    process = start(root, *argv)
    try:
        target = step_process(root) if kind == "step" else process
        sent = target is not None and kill_after(target, after, number)
        assert process.wait(240) != 0 or not sent, "a killed run said that all is well"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    count(kind, number, sent)
    print("killed" if sent else "late")
    assert all_gone(root)

    if kind in ("step", "dvc") and (mended := mend(root)):  # `dsm run` does it by itself, `dvc repro` does not
        print(f"killed in the instant in which DVC wrote {mended}")
    started = time.monotonic()
    said = finish(root, *((*DVC, "repro") if kind in ("step", "dvc") else argv))
    if f"Running stage '{stage}'" in said:
        undisturbed.seconds[step] = time.monotonic() - started - START_DVC
    if kind == "register":
        undisturbed.seconds["register"] = time.monotonic() - started
    assert results(root) == undisturbed.results
    assert locked(root) == undisturbed.locked
    assert leftovers(root) == []
    assert all_gone(root)
    if kind in ("flow", "register"):
        assert_registered_once(root)
