"""Tells an operator that a flow run went wrong: a line, and one POST to the address in DSM_WEBHOOK, if there is one."""

import os
from typing import Any

import httpx
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging import get_logger

from flows.environment import stamp

WEBHOOK = "DSM_WEBHOOK"
PATIENCE = 10.0  # seconds


def reason(state: State[Any]) -> str:
    """Why a run did not complete, in one line: the text of what it raised, or what its state says."""
    raised = state.result(raise_on_failure=False) if state.data is not None else None
    message = str(raised) if isinstance(raised, Exception) else ""
    return " ".join((message or state.message or state.name or "").split())


def tell(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect's hook for a failed, crashed or cancelled run. A webhook that does not answer harms nothing else."""
    if begin := stamp():  # else the command that was typed says it
        print(f"{begin}{flow.name} {flow_run.name}: {state.name}: {reason(state)}", flush=True)
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    # `text` is what chat services show.
    text = f"{flow.name} {flow_run.name}: {state.name}: {state.message}"
    body = {"text": text, "flow_run": str(flow_run.id), "state": state.name, "parameters": flow_run.parameters}
    try:
        httpx.post(address, json=body, timeout=PATIENCE).raise_for_status()
    except httpx.HTTPError as error:
        get_logger(__name__).warning("%s did not accept the message: %s", WEBHOOK, error)
