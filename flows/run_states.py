"""The name of a run in Prefect, and its state after Ctrl-C."""

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from prefect import Flow, get_client, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled


def with_day(template: str) -> Callable[[], str]:
    """A `flow_run_name` from a template over the parameters of the run, and the day.

    Example:
        >>> @flow(flow_run_name=with_day("{model} on {benchmark}"))
    """

    def name() -> str:
        parameters: Mapping[str, Any] = runtime.flow_run.parameters
        return f"{template.format(**parameters)}, {datetime.now(UTC):%Y-%m-%d}"

    return name


def cancelled_by_ctrl_c(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """An `on_crashed` hook that sets a run to Cancelled if Ctrl-C ended it; Prefect sets it to Crashed."""
    if isinstance(sys.exception(), KeyboardInterrupt):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(
                flow_run.id, Cancelled(message="Ctrl-C ended it; the next run continues"), force=True
            )
