"""All calls of DVC: the stages of a cell, which of them are stale, and running one of them."""

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from flows import processes
from flows.integrity import discard, is_altered, outputs_of
from flows.mending import keep, mend
from flows.processes import Finished
from tasks.pipeline.installed_code import renew_code
from tasks.pipeline.settings import Settings
from tasks.runtime.errors import InputError
from tasks.runtime.yamltext import read_yaml

STEPS = ("model", "data", "sample", "score", "search", "prune", "evaluate", "transfer", "report")

Outcome = Literal["ran", "cached", "restored"]
Status = Literal["run", "cached", "restore"]
Changes = list[str | dict[str, dict[str, object]]]  # of one stage, as `dvc status --json` tells them

STATUS_TIMEOUT = 3600.0  # seconds; the first status of a large model computes its hash
BUSY = re.compile(r"ERROR: .*(is busy|Unable to acquire lock)")
STEP_EXIT = re.compile(r"ERROR: .*failed to run: .* exited with (-?\d+)$")  # dvc about the command of a stage
EDGE = re.compile(r'"(.+)" -> "(.+)";')


class Busy(Exception):
    """Another process works on the stage's files: worth another attempt."""


class StepFailed(Exception):
    """A stage or command failed. The text is one line; `lines` holds the last ones that it wrote.

    `killed`: something ended it by a signal, as the system does when memory runs out.
    """

    def __init__(self, name: str, problem: str, lines: Sequence[str] = (), *, killed: bool = False):
        self.lines = list(lines)
        self.killed = killed
        super().__init__(f"{name}: {problem}")


def stages_of(model: str, benchmark: str) -> list[str]:
    """The DVC stages of a cell, each after those it needs."""
    cell = f"{model}-{benchmark}"
    suffix = {"model": model, "data": benchmark}
    return [f"{step}@{suffix.get(step, cell)}" for step in STEPS]


def run_stage(stage: str, root: Path, *, timeout: float, log: Callable[[str], None], force: bool = False) -> Outcome:
    """Brings one stage of the project in `root` up to date, given that those before it are.

    Args:
        force: run it even if nothing that DVC knows of has changed.

    Returns:
        cached: nothing to do; restored: its outputs came from DVC's cache; ran: its command ran.

    Raises:
        Busy: another process works on its files.
        InputError: the step found bad input; carries the step's line.
        StepFailed: anything else, a timeout too.
    """
    # `repro` locks the outputs for writing even if there is nothing to do, and so would be busy for as long as another
    # cell computes with the same model. `status` reads only.
    if not force and not _status([stage], root):
        return "cached"
    log(f"{stage.partition('@')[0]}: out of date, running")  # at once: the imports of a step take some seconds
    repro = ["--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), stage]
    finished = _run(stage, repro, root, timeout, log)
    if finished.code:
        raise _failure(stage, finished)
    for line in finished.stdout:
        if line.startswith(f"Running stage '{stage}'"):
            return "ran"
        if line.startswith(f"Stage '{stage}' is cached"):
            return "restored"
        if line.startswith(f"Stage '{stage}' didn't change"):  # another process was faster
            return "cached"
    raise StepFailed(stage, "dvc did not say what it did", finished.stdout)


def discard_damaged(stage: str, root: Path) -> list[str]:
    """Removes outputs of the stage that DVC considers unchanged although their bytes differ; see `flows.integrity`.

    Returns:
        Their paths. Running the stage brings them back.
    """
    altered = [output for output in outputs_of([stage], root) if is_altered(output, root)]
    if altered:
        cache = cache_directory(root)
        for output in altered:
            discard(output, root, cache)
    return [output.path for output in altered]


def cache_directory(root: Path) -> Path:
    """DVC's cache."""
    finished = _run("dvc cache", ["cache", "dir"], root, STATUS_TIMEOUT, _ignore)
    if finished.code:
        raise _failure("dvc cache", finished)
    return root / finished.stdout[-1]


def any_stale(stages: Sequence[str], root: Path) -> bool:
    """Whether one of these stages would run or be restored."""
    return bool(_status(stages, root))


def run_command(
    name: str,
    module: str,
    arguments: Sequence[str],
    root: Path,
    *,
    timeout: float,
    log: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Runs `python -m module`, a step that is not a DVC stage, with more variables; raises like `run_stage`.

    Returns:
        The lines of its stdout.
    """
    argv = [sys.executable, "-m", module, *arguments]
    finished = _run(name, argv, root, timeout, log, dvc=False, environment=environment)
    if finished.code:
        raise _failure(name, finished)
    return finished.stdout


def steps_that_read(before: Settings, after: Settings, model: str, benchmark: str, root: Path) -> set[str]:
    """The steps of a cell that read a setting whose value differs, as dvc.yaml lists what they read."""
    names = {"${item.model}": model, "${item.benchmark}": benchmark}
    old, new = (settings.model_dump(mode="json") for settings in (before, after))
    stages = read_yaml((root / "dvc.yaml").read_text(encoding="utf-8"), field="dvc.yaml")["stages"]

    def differs(place: str | dict[str, Any]) -> bool:
        if isinstance(place, dict):  # of another file: the hashes of installed code
            return False
        for text, name in names.items():
            place = place.replace(text, name)
        return bool(value_at(old, place) != value_at(new, place))

    return {step for step in STEPS if any(map(differs, stages[step].get("do", stages[step]).get("params", ())))}


def value_at(values: Any, place: str) -> Any:
    """The value at a dotted path of nested dictionaries; None where there is none."""
    for part in place.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def plan_stages(stages: Sequence[str], root: Path, changed: Collection[str] = ()) -> dict[str, Status]:
    """What `run_stage` would do with each of these stages, given in order and all declared in dvc.yaml.

    Args:
        changed: the steps that read settings which will change before the run.

    Where the inputs of a stage will change, `run` is a prediction: DVC may know them from an earlier run and restore.
    """
    changes = _status(stages, root)
    upstream = _upstream(stages[-1], root)
    locked = _locked(root)
    plan: dict[str, Status] = {}
    for stage in stages:
        before = {plan[name] for name in upstream.get(stage, set()) if name in plan}
        if (
            "run" in before
            or stage.partition("@")[0] in changed
            or (stage in changes and (stage not in locked or not _restorable(changes[stage], before)))
        ):
            plan[stage] = "run"
        else:
            plan[stage] = "restore" if stage in changes else "cached"
    return plan


def _restorable(changes: Changes, before: set[Status]) -> bool:
    """Whether only files are missing, the outputs are in the cache, and the inputs are among what will be restored."""
    for change in changes:
        if isinstance(change, str):  # "changed command", "always changed"
            return False
        for kind, files in change.items():
            # "not in cache" goes before "deleted" and "modified": an output of either kind is in the cache.
            outputs = kind == "changed outs" and all(how in ("deleted", "modified") for how in files.values())
            inputs = kind == "changed deps" and all(how == "deleted" for how in files.values()) and "restore" in before
            if not outputs and not inputs:
                return False
    return True


def _status(stages: Sequence[str], root: Path) -> dict[str, Changes]:
    finished = _run("dvc status", ["--wait-for-lock", "status", "--json", *stages], root, STATUS_TIMEOUT, _ignore)
    if finished.code:
        raise _failure(stages[0] if len(stages) == 1 else "dvc status", finished)
    changes: dict[str, Changes] = json.loads("\n".join(finished.stdout))
    return changes


def _upstream(stage: str, root: Path) -> dict[str, set[str]]:
    """The direct predecessors of the stage and of each one before it."""
    finished = _run("dvc dag", ["dag", "--dot", stage], root, STATUS_TIMEOUT, _ignore)
    if finished.code:
        raise _failure("dvc dag", finished)
    upstream: dict[str, set[str]] = {}
    for line in finished.stdout:
        if edge := EDGE.match(line.strip()):
            upstream.setdefault(edge[2], set()).add(edge[1])
    return upstream


def _locked(root: Path) -> set[str]:
    """The stages that ran at least once."""
    path = root / "dvc.lock"
    lock = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return set((lock or {}).get("stages") or {})


def _ignore(line: str) -> None:
    pass


def _run(
    name: str,
    argv: list[str],
    root: Path,
    timeout: float,
    log: Callable[[str], None],
    *,
    dvc: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    if dvc:
        mend(root)
        keep(root)
        renew_code(root)
        # -P: the project's own folders (data, tasks) must not hide a package of that name from dvc.
        argv = [sys.executable, "-P", "-m", "dvc", *argv]
    try:
        # What dvc says on stdout is for us; the steps under it report on stderr.
        return processes.run(argv, cwd=root, timeout=timeout, line=log, tell_stdout=not dvc, environment=environment)
    except TimeoutError:
        raise StepFailed(name, f"took longer than {timeout:g} s and was ended (DSM_STEP_TIMEOUT)") from None


def _failure(name: str, finished: Finished) -> Exception:
    """The exception that says why a process failed."""
    lines = [line for line in finished.stderr if line.strip()]
    for number, line in enumerate(lines):
        if BUSY.match(line):
            blockers = [blocker.strip() for blocker in lines[number + 1 :] if blocker.startswith("  (PID ")]
            return Busy(" ".join([line.removeprefix("ERROR: "), *blockers]))
    by_dvc = [line for line in lines if line.startswith("ERROR: ")]
    by_step = [line.strip() for line in lines if not line.startswith("ERROR: ")]
    exits = [int(match[1]) for line in by_dvc if (match := STEP_EXIT.match(line))]
    if by_dvc and not exits:  # dvc itself refused
        return StepFailed(name, by_dvc[-1].removeprefix("ERROR: "), lines[-40:])
    code = exits[-1] if exits else finished.code
    errors = [line.removeprefix("error: ") for line in by_step if line.startswith("error: ")]
    if code == 2 and errors and ": " in errors[-1]:
        return InputError(*errors[-1].split(": ", 1))
    last = f": {by_step[-1]}" if by_step else ""
    return StepFailed(name, f"exited with {code}{last}", (finished.stdout + lines)[-40:], killed=code < 0)
