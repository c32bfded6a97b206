"""What `dsm plan` says: what a run would do with each step, and about how long that takes."""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.stages import STEPS, Status, plan_stages, stages_of
from tasks.evidence.preflight_note import describe_answers, warning
from tasks.pipeline.cell import Cell
from tasks.pipeline.model_size import ModelSize, model_size
from tasks.runtime.files import read_json, read_jsonl

# Used where the size of the model is not known, and until the samples are there: the default model, and the sentences
# of its benchmark.
ASSUMED = ModelSize(layers=30, hidden=576, intermediate=1536, heads=9, key_value_heads=3)
ASSUMED_ROW = 120  # characters that a row adds to the template of the prompt

CHARACTERS_PER_TOKEN = 4.0  # English text
PROBES = 10  # gradient evaluations that the adaptive quadrature spends on a layer, on average
BACKWARD = 1.0  # a backward pass without weight gradients costs as much as a forward pass
SUFFIX = 0.5  # a run that starts at layer l costs (1 - l / layers) of a forward pass: half of one on average

# Without timings of this machine: multiply-adds per second that 2 idle CPU cores reach (`python -m bench.engine`), and
# seconds of steps not bound by forward passes (download and conversion of the default model, reading of a benchmark).
RATES = {"score": 6e10, "float32": 7e10, "bfloat16": 1.05e11}
FIXED = {"model": 30.0, "data": 5.0, "sample": 5.0, "prune": 5.0, "report": 5.0, "register": 16.0}
MOST = 0.75  # GiB of activations: `tasks.models.memory.LIMIT`
START = 4.0  # seconds that a step takes before its first forward pass

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
    """The steps in order, and what their estimate rests on.

    Attributes:
        assumed: the model size that the numbers are for, if that of the model is not known; else "".
    """

    lines: list[Line]
    basis: str
    assumed: str = ""


def make_plan(cell: Cell, changed: Collection[str] = ()) -> Plan:
    """What a run of this cell would do, in order. Reads only.

    Args:
        changed: the steps that read settings which the run would change first, so that DVC does not know yet.

    Raises:
        InputError: the files of the model do not say how large it is.
    """
    known = model_size(cell.model_spec, cell.model_dir, cell.root, field=f"models.{cell.model}.source")
    size = known or ASSUMED
    work = forward_passes(cell, size)
    cost = prompt_tokens(cell) * size.multiply_adds
    timings = _timings(cell)
    # The speed of this machine relative to the typical one. A step with a timing has its own speed.
    speeds: dict[str, float] = {
        step: work[step] * cost / _rate(cell, step) / max(timings[step] - START, 1.0)
        for step in ("score", "search", "evaluate", "transfer")
        if step in timings and work[step]
    }
    speed = sum(speeds.values(), 0.0) / len(speeds) if speeds else 1.0
    basis = (
        f"estimated from the last timings of {', '.join(speeds)}"
        if speeds
        else "estimated with a typical speed of 2 CPU cores"
    )
    assumed = "" if known else f"{size.multiply_adds / 1e6:.0f} million weights in {size.layers} layers"
    if assumed:
        basis += f"; the size of {cell.model} is not known before it is fetched: the numbers are for {assumed}"
    elif cell.model_dir.exists():
        basis += f"; memory: {held(cell, size)}"
    if cell.preflight.exists():
        answers = read_json(cell.preflight)
        basis += f"; {warning(answers) or describe_answers(answers)}"
    lines = []
    for step, (stage, status) in zip(STEPS, _statuses(cell, changed).items(), strict=True):
        if status != "run":
            lines.append(Line(stage, status, 0, 0.0))
        elif step in FIXED and not work[step]:
            lines.append(Line(stage, status, 0, timings.get(step, FIXED[step])))
        else:
            seconds = work[step] * cost / _rate(cell, step) / speeds.get(step, speed)
            lines.append(Line(stage, status, round(work[step]), START + seconds))
    lines.append(Line("register", "check", 0, timings.get("register", FIXED["register"])))
    return Plan(lines, basis, assumed)


def held(cell: Cell, size: ModelSize) -> str:
    """Where the steps that run the model hold its weights, in words.

    On a CPU the files of the weights are mapped, so that the system reads them as they are needed and may drop them; a
    layer whose weights are narrower is in float32 while it computes.
    """
    weights = sum(path.stat().st_size for path in cell.model_dir.glob("*.safetensors"))
    layer = 4 * size.multiply_adds / size.layers
    if (os.environ.get("DSM_DEVICE") or "cpu").startswith("cuda"):
        return (
            f"weights of {weights / 1e9:.3g} GB on the GPU, or one layer of {layer / 2e9:.2g} GB (in bfloat16) at a "
            "time if they do not fit, and half of the free memory for activations"
        )
    allowed = os.environ.get("DSM_MEMORY")
    rest = f"at most {allowed} bytes in all (DSM_MEMORY)" if allowed else f"at most {MOST} GiB of activations"
    return (
        f"weights of {weights / 1e9:.3g} GB mapped from disk, a layer of {layer / 1e9:.2g} GB in float32 at a "
        f"time, {rest}"
    )


def forward_passes(cell: Cell, size: ModelSize) -> dict[str, float]:
    """Forward passes of the whole model over one prompt that each step spends; parts of one add up.

    An option of one token costs nothing beyond its prompt: longer ones are not counted.
    """
    settings, limits, layers = cell.settings, cell.benchmark_spec.limits, size.layers
    examples, unlabeled = settings.adaptation.size, settings.adaptation.unlabeled
    pairs = layers * len(settings.search.fractions)
    looked_at = {
        "exhaustive": pairs,
        "coarse_to_fine": 3 * layers / 4 + 7 * len(settings.search.fractions),
        "layer_subset": pairs / 4,
        "from_cell": pairs / 4,
        "dropping": pairs,  # at most
    }
    return {
        "model": 0,
        "data": 0,
        # Rows are drawn until enough are answered right (wrong): about every second one is.
        "sample": examples + unlabeled + (0 if settings.adaptation.selection == "random" else 2 * examples),
        "score": examples * (1 + _gradients(cell, size) * (1 + BACKWARD)),
        "search": (examples + (unlabeled if settings.search.reads_unlabeled else 0))
        * (1 + looked_at[settings.search.strategy] * SUFFIX),
        "prune": 0,
        "evaluate": limits.test * (1 + (2 + len(settings.evaluation.control_seeds)) * _after(cell, layers)),
        "transfer": limits.transfer * (1 + pairs * SUFFIX),
        "report": 0,
    }


def _gradients(cell: Cell, size: ModelSize) -> float:
    """Gradients of whole passes that `score` takes of a prompt, that of the full model among them."""
    rule = cell.settings.attribution
    if rule.method == "activation":
        return 0
    if rule.method in ("gradient_x_activation", "saliency"):
        return 1
    if rule.path == "single":
        return size.layers * size.intermediate * SUFFIX / (1 + BACKWARD)
    fixed = rule.method in ("relu_gradient", "shapley") or rule.quadrature == "riemann_right"
    nodes = rule.steps if fixed else min(PROBES, rule.max_nodes)
    return 1 + nodes * (1 if rule.path == "all_layers" else size.layers * SUFFIX)


def _after(cell: Cell, layers: int) -> float:
    """The part of a pass that follows the pruned layer, if that has been chosen."""
    return 1 - read_json(cell.pruned)["layer"] / layers if cell.pruned.exists() else SUFFIX


def _rate(cell: Cell, step: str) -> float:
    return RATES[step] if step in RATES else RATES[getattr(cell.settings.precision, step, "float32")]


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


def _statuses(cell: Cell, changed: Collection[str]) -> dict[str, Status]:
    pipeline = cell.settings.pipeline
    stages = stages_of(cell.model, cell.benchmark)
    plan: dict[str, Status] = dict.fromkeys(stages, "run")
    if cell.name in pipeline.cells:
        return plan_stages(stages, cell.root, changed)
    # `dsm run` will add the cell to the pipeline; until then DVC knows at most its model and its rows.
    model = cell.model in pipeline.models and "model" not in changed
    data = cell.benchmark in pipeline.benchmarks and "data" not in changed
    for known, stage in ((model, stages[0]), (data, stages[1])):
        if known:
            plan |= plan_stages([stage], cell.root)
    return plan


def _timings(cell: Cell) -> dict[str, float]:
    """Seconds that the steps took when they last ran on this machine."""
    return {path.stem: _seconds(path) for path in sorted((cell.scratch / "timings").glob("*.json"))}


def _seconds(path: Path) -> float:
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
