"""Tells an operator that a flow run went wrong: one POST to the address in DSM_WEBHOOK, if there is one."""

import os
from typing import Any

import httpx
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging import get_logger

WEBHOOK = "DSM_WEBHOOK"
PATIENCE = 10.0  # seconds


def tell(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect's hook for a failed, crashed or cancelled run. A webhook that does not answer harms nothing else."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    # `text` is what chat services show.
    text = f"{flow.name} {flow_run.name}: {state.name}: {state.message}"
    body = {"text": text, "flow_run": str(flow_run.id), "state": state.name, "parameters": flow_run.parameters}
    try:
        httpx.post(address, json=body, timeout=PATIENCE).raise_for_status()
    except httpx.HTTPError as error:
        get_logger(__name__).warning("%s does not take the news: %s", WEBHOOK, error)
