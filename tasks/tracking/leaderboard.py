"""What MLflow's page of the experiment shows: a table of the newest result of every cell, and a saved view of the runs.

Both are tags of the experiment, as MLflow's pages write them: its description, and an entry under "Views" that selects
columns and order. They are written anew after every registration.
"""

import json
from datetime import UTC, datetime
from typing import Any

from tasks.evidence.verdict import p_value, signed

NOTE = "mlflow.note.content"
VIEW = "results"  # the saved view's name in addresses
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
NOTE_LIMIT = 15_000  # characters; MLflow takes 20,000 in a tag
# The columns of the saved view, and how wide they are in pixels.
COLUMNS = {
    "params.`benchmark`": 120, "metrics.`accuracy_base`": 115, "metrics.`accuracy_pruned`": 130,
    "metrics.`exact_match_base`": 140, "metrics.`exact_match_pruned`": 155, "metrics.`p_value`": 80,
    "metrics.`exact_match_p_value`": 160, "metrics.`n`": 60, "metrics.`accuracy_random`": 130,
    "params.`model`": 190, "params.`pruned.layer`": 110, "params.`pruned.fraction`": 130,
}  # fmt: skip


def write_leaderboard(client: Any, experiment: str) -> None:
    """Brings the experiment's description and its saved view up to date with the runs."""
    known = client.get_experiment(experiment)
    for name, value in ((NOTE, _note(experiment, _newest(client, experiment))), (VIEW_TAG, _view(known.creation_time))):
        if known.tags.get(name) != value:
            client.set_experiment_tag(experiment, name, value)


def results_page(experiment: str) -> str:
    """The page of the results, below the address of an MLflow server."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def _newest(client: Any, experiment: str) -> list[Any]:
    """The newest finished run of every cell, in the order of the cells' names."""
    newest: dict[str, Any] = {}
    token = None
    while True:
        runs = client.search_runs([experiment], "attributes.status = 'FINISHED'", page_token=token)  # newest first
        for run in runs:
            if (cell := run.data.tags.get("cell")) and "exact_match_p_value" in run.data.metrics:
                newest.setdefault(cell, run)
        token = runs.token
        if not token:
            return [newest[cell] for cell in sorted(newest)]


def _note(experiment: str, runs: list[Any]) -> str:
    """The table in Markdown. Its first line is what the page shows while the description is folded."""
    lines = [
        f"Results of {len(runs)} cell{'s' if len(runs) != 1 else ''}, the newest of each (unfold for the table)\n",
        "| cell | day | n | accuracy | exact match | random neurons: accuracy |",
        "|---|---|---|---|---|---|",
    ]
    left = len(runs)
    for run in runs:
        line = _row(experiment, run)
        if sum(map(len, lines)) + len(line) > NOTE_LIMIT:
            lines.append(f"| {left} more: see the runs below | | | | | |")
            break
        lines.append(line)
        left -= 1
    legend = (
        "base → pruned on the same n held-out rows; in brackets the paired difference and p of the exact McNemar test"
    )
    return "\n".join([*lines, "", legend])


def _row(experiment: str, run: Any) -> str:
    values, tags = run.data.metrics, run.data.tags

    def change(name: str, difference: str, p: str) -> str:
        return (
            f"{values[f'{name}_base']:.3f} → {values[f'{name}_pruned']:.3f} "
            f"({signed(values[difference])}, {p_value(values[p])})"
        )

    cells = (
        f"[{tags['model']} on {tags['benchmark']}](#/experiments/{experiment}/runs/{run.info.run_id})",
        f"{datetime.fromtimestamp(run.info.start_time / 1000, UTC):%Y-%m-%d}",
        f"{values['n']:.0f}",
        change("accuracy", "difference", "p_value"),
        change("exact_match", "exact_match_difference", "exact_match_p_value"),
        f"{values['accuracy_random']:.3f}",
    )
    return f"| {'&emsp; | '.join(cells)} |"  # MLflow draws no space between columns


def _view(created: int) -> str:
    """The saved view, in the form in which MLflow's pages save one."""
    state = {
        "searchFilter": "", "orderByKey": "metrics.`accuracy_pruned`", "orderByAsc": False, "startTime": "ALL",
        "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS), "columnOrder": list(COLUMNS), "columnWidths": COLUMNS, "runsExpanded": {},
    }  # fmt: skip
    return json.dumps({"name": "Results", "createdAt": created, "updatedAt": created, "state": json.dumps(state)})
