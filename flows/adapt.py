"""The Prefect flow that adapts a model to a benchmark: one task per DVC stage, then the registry.

DVC decides what is stale; the flow decides when it runs, what is tried again, and shows it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from filelock import FileLock, Timeout
from prefect import flow, get_client, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import MissingContextError
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.cells import has_result, list_cell
from flows.environment import stamp, step_timeout
from flows.removal import taken_back_without_result
from flows.results import Result, as_markdown, read_result
from flows.run_states import cancelled_by_ctrl_c, with_day
from flows.stages import (
    Busy,
    Outcome,
    StepFailed,
    any_stale,
    discard_damaged,
    run_command,
    run_stage,
    stages_of,
)
from tasks.pipeline.cell import Cell, open_cell
from tasks.tracking.store import FLOW, tracking_uri

# Another process may hold a stage for as long as a download takes; for longer, a person should decide.
RETRIES = 60
RETRY_DELAY = 10.0  # seconds
# The steps that give an entry of params.yaml its result, and its section.
RESULTS = {"evaluate": "pipeline.cells", "study": "studies", "nsa": "nsa", "sparsify": "sparse"}
KILLED = 2  # times that a step which something killed is tried again: memory may be free by then


def _is_worth_another(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Prefect's retry condition: another process blocks the step, or the system killed it, at most KILLED times."""
    try:
        state.result()
    except Busy:
        return True
    except StepFailed as failure:
        return failure.killed and task_run.run_count <= KILLED
    except BaseException:
        return False
    return False


_held: list[str] = []  # the cells that this process keeps others away from; a run works on one at a time


def say(name: str, what: str) -> None:
    """One line for the person who watches, and for the log of the run, if there is one yet, on the server."""
    with suppress(MissingContextError):
        get_run_logger().info("%s: %s", name, what)
    print(f"{stamp(_held[-1] if _held else '')}{name:<9} {what}", flush=True)


def _tell(line: str) -> None:
    """A line of a step's own output."""
    if line.strip():
        print(f"{stamp(_held[-1] if _held else '')}  {line}", flush=True)


@task(cache_policy=NO_CACHE, retries=RETRIES, retry_delay_seconds=RETRY_DELAY, retry_condition_fn=_is_worth_another)
def bring_up_to_date(step: str, stage: str, readers: Sequence[str] = (), force: bool = False) -> State[Outcome]:
    """Runs one DVC stage if it is stale. The state's name says what was done: Ran, Cached or Restored.

    Outputs that DVC considers unchanged are hashed first. A model, which may be very large, is hashed only if one of
    `readers`, the stages that read it, is stale.
    """
    started = time.monotonic()
    logger = get_run_logger()

    def log(line: str) -> None:
        logger.info(line)
        _tell(line)

    try:
        root = Path.cwd()
        outcome = run_stage(stage, root, timeout=step_timeout(), log=log, force=force)
        believed = outcome == "cached" and readers and not any_stale(readers, root)
        if outcome != "ran" and not believed and (lost := discard_damaged(stage, root)):
            say(step, f"damaged on disk, computed again: {', '.join(lost)}")
            outcome = run_stage(stage, root, timeout=step_timeout(), log=log)
    except Busy as busy:
        say(step, f"waiting for another process: {busy}")
        raise
    except StepFailed as failure:
        logger.error("%s\n%s", failure, "\n".join(failure.lines))
        raise
    say(step, f"{outcome:<9} {time.monotonic() - started:6.1f} s")
    return Completed(name=outcome.capitalize(), data=outcome, message=f"{stage}: {outcome}")


@task(cache_policy=NO_CACHE)
def act(step: str, model: str, benchmark: str) -> str:
    """Runs a step that acts in MLflow, outside DVC, and skips work that is done. Returns its last line."""
    started = time.monotonic()
    logger = get_run_logger()

    def log(line: str) -> None:
        logger.info(line)
        _tell(line)

    lines = run_command(
        step,
        f"tasks.steps.{step}",
        ["--model", model, "--benchmark", benchmark],
        Path.cwd(),
        timeout=step_timeout(),
        log=log,
        environment={FLOW: _root_flow_run()},
    )
    say(step, f"{'done':<9} {time.monotonic() - started:6.1f} s")
    return lines[-1] if lines else ""


def _root_flow_run() -> str:
    """Id and name of the outermost flow run."""
    root = flow_run.root_flow_run_id
    with get_client(sync_client=True) as client:
        return f"{root} {client.read_flow_run(UUID(root)).name}"


@contextmanager
def alone(cell: Cell) -> Iterator[None]:
    """Keeps other flows on this machine away from the cell.

    Raises:
        Busy: another one works on it for longer than the retries of a step last.
    """
    cell.scratch.mkdir(parents=True, exist_ok=True)
    # One object for all callers in this process: a flow inside a flow does not wait for itself.
    lock = FileLock(cell.scratch / "flow.lock", is_singleton=True)
    _held.append(cell.name)
    try:
        _acquire(lock, cell)
        try:
            yield
        finally:
            lock.release()
    finally:
        _held.pop()


def _acquire(lock: FileLock, cell: Cell) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("flow", f"waiting: another flow is working on {cell.name}")
        try:
            lock.acquire(timeout=RETRIES * RETRY_DELAY)
        except Timeout:
            raise Busy(f"another flow is working on {cell.name}") from None


@contextmanager
def listed(cell: Cell, list_more: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Has the cell in `pipeline.cells`, and keeps other flows away from it. Additions are removed if the body fails.

    Args:
        list_more: adds a further entry, and returns what it added.

    Raises:
        InputError: what would be added would be wrong.
        Busy: as `alone`.
    """
    with alone(cell), taken_back_without_result(cell.root):
        for line in [*list_cell(cell.root, cell.model, cell.benchmark), list_more()]:
            if line:
                print(f"added to params.yaml, so that `dvc repro` keeps it up to date: {line}", flush=True)
        yield


@flow(
    name="adapt",
    flow_run_name=with_day("{model} on {benchmark}"),
    on_crashed=[cancelled_by_ctrl_c],
    validate_parameters=False,
)
def adapt(model: str, benchmark: str) -> Result:
    """Brings every stage of the cell up to date, registers the result and shows it in Prefect.

    The project is the working directory, as for `dvc`; the cell is in `pipeline.cells` of its
    params.yaml.

    Raises:
        InputError: a step found bad input.
        StepFailed: a step failed otherwise, or took too long.
        Busy: another process kept a stage's files for longer than the retries last.
    """
    cell = open_cell(model, benchmark)
    with alone(cell):
        stages = stages_of(model, benchmark)
        run_step(stages[0], readers=stages[1:])
        for stage in stages[1:]:
            run_step(stage)
        run_action("register", model, benchmark)
        result = read_result(cell)
    if result is None:
        raise StepFailed("adapt", "all stages are up to date, but there is no result")
    show(cell, result)
    return result


def run_step(stage: str, *, readers: Sequence[str] = (), force: bool = False) -> None:
    """Brings a stage up to date, as a task that the run graph shows by step and cell."""
    step, _, of_what = stage.partition("@")
    bring_up_to_date.with_options(name=step, task_run_name=f"{step} {of_what}")(step, stage, readers, force)
    if step in RESULTS:
        has_result(RESULTS[step], of_what)


def run_action(step: str, model: str, benchmark: str) -> str:
    """Runs a step that acts in MLflow, as such a task."""
    return act.with_options(name=step, task_run_name=f"{step} {model}-{benchmark}")(step, model, benchmark)


def show(cell: Cell, result: Result) -> None:
    """The result as a Prefect artifact: the table, and where the rest is."""
    create_markdown_artifact(
        key=f"{cell.model}-{cell.benchmark}".lower().replace("_", "-"),
        description=f"{cell.model} on {cell.benchmark}",
        markdown=f"{as_markdown([result])}\n\n{list_of_files(cell)}",
    )


def list_of_files(cell: Cell) -> str:
    """A list in Markdown: files as plain paths, since no browser follows a `file:` link from Prefect's pages."""
    uri = urlsplit(tracking_uri(cell.root))
    registered = f"run `dsm ui`; the model is {cell.name}"
    if uri.scheme in ("http", "https"):
        address = f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path.rstrip('/')}"  # without a password
        registered = f"[{cell.name}]({address}/#/models/{cell.name})"
    return (
        f"- report: `{cell.report}`\n"
        f"- recipe: `{cell.pruned}`\n"
        f"- weights: `dsm export --model {cell.model} --benchmark {cell.benchmark} --out DIR`\n"
        f"- MLflow: {registered}\n"
    )
