"""What `dsm plan` says: what a run would do with each step, and about how long that takes."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.stages import STEPS, Status, plan_stages, stages_of
from tasks.pipeline.cell import Cell
from tasks.pipeline.files import read_json, read_jsonl

# Used until the model and the samples are there: the default model, and the sentences of its benchmark.
ASSUMED_LAYERS = 30
ASSUMED_PARAMETERS = 134.5e6
ASSUMED_ROW = 120  # characters that a row adds to the template of the prompt

CHARACTERS_PER_TOKEN = 4.0  # English text
PROBES = 8  # gradient evaluations that the adaptive quadrature spends on a layer, on average (2 panels of 4 nodes)
BACKWARD = 2.0  # a backward pass costs as much as this many forward passes
SUFFIX = 0.5  # a run that starts at layer l costs (1 - l / layers) of a forward pass: half of one on average

# Without timings of this machine: multiply-adds per second that 2 idle CPU cores reach in float32, and seconds of steps
# not bound by forward passes (download and conversion of the default model, reading of a benchmark).
SPEED = 4e10
FIXED = {"model": 60.0, "data": 20.0, "sample": 5.0, "prune": 5.0, "report": 10.0}
START = 3.0  # seconds that a step takes before its first forward pass

Does = Literal["run", "cached", "restore", "check"]


@dataclass(frozen=True)
class Line:
    """One step of the plan. `passes` counts forward passes of the whole model over one prompt; both are estimates."""

    stage: str
    does: Does
    passes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The steps in order, and what their estimate rests on."""

    lines: list[Line]
    basis: str


def make_plan(cell: Cell) -> Plan:
    """What a run of this cell would do, in order. Reads only."""
    work = forward_passes(cell, _layers(cell) or ASSUMED_LAYERS)
    timings = _timings(cell)
    cost = prompt_tokens(cell) * (_parameters(cell) or ASSUMED_PARAMETERS)  # multiply-adds of one forward pass
    speed, basis = _speed(work, timings, cost)
    if not _parameters(cell):
        basis += "; the model is not there yet: the size of the default model is assumed"
    lines = []
    for step, (stage, status) in zip(STEPS, _statuses(cell).items(), strict=True):
        if status != "run":
            lines.append(Line(stage, status, 0, 0.0))
        elif step in FIXED and not work[step]:
            lines.append(Line(stage, status, 0, timings.get(step, FIXED[step])))
        else:
            lines.append(Line(stage, status, round(work[step]), START + work[step] * cost / speed))
    lines.append(Line("register", "check", 0, timings.get("register", START)))
    return Plan(lines, basis)


def forward_passes(cell: Cell, layers: int) -> dict[str, float]:
    """Forward passes of the whole model over one prompt that each step spends; parts of one add up.

    An option of one token costs nothing beyond its prompt: longer ones are not counted.
    """
    settings, limits = cell.settings, cell.benchmark_spec.limits
    size = settings.adaptation.size
    rule = settings.attribution
    nodes = rule.steps if rule.quadrature == "riemann_right" else min(PROBES, rule.max_nodes)
    grid = layers * len(settings.search.fractions) * SUFFIX
    return {
        "model": 0,
        "data": 0,
        # Rows are drawn until enough are answered right (wrong): about every second one is.
        "sample": 0 if settings.adaptation.selection == "random" else 2 * size,
        "score": size * (1 + layers * nodes * SUFFIX * (1 + BACKWARD)),
        "search": size * (1 + grid),
        "prune": 0,
        "evaluate": limits.test * (2 + len(settings.evaluation.control_seeds)),
        "transfer": limits.transfer * (1 + grid),
        "report": 0,
    }


def prompt_tokens(cell: Cell) -> float:
    """Tokens that a row adds, on average, to what all prompts begin with (computed once: `tasks.models.packing`).

    Estimated from the samples if they are there, otherwise from the template.
    """
    if cell.samples.exists():
        prompts = [row["prompt"] for row in read_jsonl(cell.samples)]
        shared = len(os.path.commonprefix(prompts)) if len(prompts) > 1 else 0  # noqa: RUF071 - characters are meant
        return (sum(map(len, prompts)) / len(prompts) - shared) / CHARACTERS_PER_TOKEN
    rest = cell.benchmark_spec.prompt.partition("{{")[2]
    return (len(rest) + ASSUMED_ROW) / CHARACTERS_PER_TOKEN


def _statuses(cell: Cell) -> dict[str, Status]:
    pipeline = cell.settings.pipeline
    stages = stages_of(cell.model, cell.benchmark)
    plan: dict[str, Status] = dict.fromkeys(stages, "run")
    model, data = cell.model in pipeline.models, cell.benchmark in pipeline.benchmarks
    if model and data:
        return plan_stages(stages, cell.root)
    # `dsm run` will add the cell to the pipeline; until then DVC knows at most one of its halves.
    for known, stage in ((model, stages[0]), (data, stages[1])):
        if known:
            plan |= plan_stages([stage], cell.root)
    return plan


def _layers(cell: Cell) -> int | None:
    path = cell.model_dir / "config.json"
    if not path.exists():
        return None
    config = read_json(path)
    return int(config.get("text_config", config)["num_hidden_layers"])


def _parameters(cell: Cell) -> float | None:
    """From the size of the float32 weights."""
    weights = list(cell.model_dir.glob("*.safetensors"))
    return sum(path.stat().st_size for path in weights) / 4 or None


def _timings(cell: Cell) -> dict[str, float]:
    """Seconds that the steps took when they last ran on this machine."""
    return {path.stem: _seconds(path) for path in sorted((cell.scratch / "timings").glob("*.json"))}


def _seconds(path: Path) -> float:
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])


def _speed(work: dict[str, float], timings: dict[str, float], cost: float) -> tuple[float, str]:
    """Multiply-adds per second, and where that comes from. `cost` is that of one forward pass."""
    timed = [step for step in ("score", "search", "evaluate", "transfer") if step in timings and work[step]]
    seconds = _sum(max(timings[step] - START, 0.0) for step in timed)
    if not seconds:
        return SPEED, "estimated with a typical speed of 2 CPU cores"
    return _sum(work[step] for step in timed) * cost / seconds, f"estimated from the last timings of {', '.join(timed)}"


def _sum(values: Iterable[float]) -> float:
    return sum(values, 0.0)
