"""The schedules of params.yaml in Prefect: prefect.yaml, the server's deployments, and an automation for dead runs."""

import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron
from pydantic import ValidationError

from flows.cells import named_cells
from flows.environment import HEARTBEAT, child_environment, operated
from tasks.pipeline.retraining import Schedule
from tasks.pipeline.settings import Settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import write_text

FLOW = "retrain"
ENTRYPOINT = "flows/retrain.py:retrain"
PREFECT = "prefect.yaml"
HEAD = """\
# Written by `dsm deploy` from `retrain` in params.yaml: make changes there. `prefect deploy --all` reads this file.
# A run that is due while the previous one is still running waits for it.
"""
DEAD = "dsm: runs without a heartbeat have crashed"
BEATS = 3  # heartbeats that may be missed
FLOWS = ["adapt", "nsa", "retrain", "retrain cell", "sparsify", "study"]  # all flows of this project


def check_schedules(settings: Settings) -> None:
    """Raises InputError for a cron line that Prefect does not accept, and for names that no cell has."""
    for name, schedule in settings.retrain.schedules.items():
        named_cells(settings, schedule.models, schedule.benchmarks, field=f"retrain.schedules.{name}")
        try:
            CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
        except ValidationError:
            raise InputError(
                f"retrain.schedules.{name}.cron",
                f"must have the five fields of cron (minute hour day month weekday), not {schedule.cron!r}",
            ) from None


def _parameters(schedule: Schedule) -> dict[str, Any]:
    return {"models": schedule.models or None, "benchmarks": schedule.benchmarks or None}


def served(settings: Settings) -> list[RunnerDeployment]:
    """The deployments of `dsm serve`. The process that serves them also starts their runs."""
    from flows.retrain import retrain

    return [
        RunnerDeployment.from_flow(
            retrain,
            name=name,
            schedule=Cron(schedule.cron, timezone=schedule.timezone),
            paused=False,  # an earlier `dsm serve` pauses it when it ends
            parameters=_parameters(schedule),
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        )
        for name, schedule in settings.retrain.schedules.items()
    ]


def pause(settings: Settings) -> list[str]:
    """Pauses the deployments of `dsm serve`, so that Prefect schedules no runs that no process would start.

    Returns:
        The result for each schedule, one line each.
    """
    lines = []
    for name in settings.retrain.schedules:
        try:
            with get_client(sync_client=True) as client:
                client.pause_deployment(client.read_deployment_by_name(f"{FLOW}/{name}").id)
        except (httpx.HTTPError, ObjectNotFound) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            lines.append(f"{FLOW}/{name}: could not be paused; runs that come due stay `Late` ({why})")
        else:
            lines.append(f"{FLOW}/{name}: paused until the next `dsm serve`")
    return lines


def prefect_yaml(settings: Settings) -> str:
    """The text of prefect.yaml: a deployment for each schedule, for workers of the work pool `retrain.pool`."""
    deployments = [
        {
            "name": name,
            "entrypoint": ENTRYPOINT,
            "parameters": _parameters(schedule),
            "schedules": [{"cron": schedule.cron, "timezone": schedule.timezone}],
            "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
            "work_pool": {"name": settings.retrain.pool, "job_variables": {"env": operated()}},
        }
        for name, schedule in settings.retrain.schedules.items()
    ]
    return HEAD + yaml.safe_dump({"name": "dsm", "deployments": deployments}, sort_keys=False)


def deploy(root: Path, settings: Settings) -> list[str]:
    """Writes prefect.yaml and updates the server's deployments of `retrain` to match it.

    Returns:
        The work pool, the deployments and the automation of the server, one line each.

    Raises:
        InputError: a schedule is wrong, or `prefect deploy` fails.
    """
    check_schedules(settings)
    write_text(root / PREFECT, prefect_yaml(settings))
    pool, names = settings.retrain.pool, set(settings.retrain.schedules)
    with get_client(sync_client=True) as client:
        try:
            kind = client.read_work_pool(pool).type
        except ObjectNotFound:
            kind = "process"
            with suppress(ObjectAlreadyExists):  # another process created it in the meantime
                client.create_work_pool(WorkPoolCreate(name=pool, type=kind))
        if names:
            command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
            done = subprocess.run(command, cwd=root, env=child_environment(), capture_output=True, text=True)
            if done.returncode:
                raise InputError(PREFECT, f"prefect deploy: {(done.stderr or done.stdout).strip()[-300:]}")
        lines = [f"work pool {pool} ({kind})"]
        for deployment in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW]))):
            if deployment.name not in names:
                client.delete_deployment(deployment.id)
                lines.append(f"deployment {FLOW}/{deployment.name}: removed, params.yaml has no such schedule")
    lines += [f"deployment {FLOW}/{name}: {s.cron} {s.timezone}" for name, s in settings.retrain.schedules.items()]
    watch_for_dead_runs()
    return [*lines, f"automation {DEAD!r}"]


def watch_for_dead_runs() -> None:
    """Creates an automation on the server that sets a run to Crashed if its heartbeat stops before it has ended.

    The start of a run counts as a heartbeat, for a run that is killed before its first one. So the automation is
    limited to this project's flows: other flows on the server may not send heartbeats.
    """
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    automation = AutomationCore(
        name=DEAD,
        trigger=EventTrigger(
            after={"prefect.flow-run.Running", "prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={"prefect.resource.role": ["flow"], "prefect.resource.name": FLOWS},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=BEATS * HEARTBEAT),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed", state=StateType.CRASHED, message="No heartbeat: its process is gone.", force=False
            )
        ],
    )
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(name=DEAD)
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)
