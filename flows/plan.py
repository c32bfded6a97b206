"""What `dsm plan` says: what a run would do with each step, and about how long that takes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.stages import STEPS, Status, plan_stages, stages_of
from tasks.pipeline.cell import Cell
from tasks.runtime.files import read_json, read_jsonl

# Used until the model and the samples are there: the default model, and the sentences of its benchmark.
ASSUMED = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
ASSUMED_ROW = 120  # characters that a row adds to the template of the prompt

CHARACTERS_PER_TOKEN = 4.0  # English text
PROBES = 10  # gradient evaluations that the adaptive quadrature spends on a layer, on average
BACKWARD = 1.0  # a backward pass without weight gradients costs as much as a forward pass
SUFFIX = 0.5  # a run that starts at layer l costs (1 - l / layers) of a forward pass: half of one on average

# Without timings of this machine: multiply-adds per second that 2 idle CPU cores reach (`python -m bench.engine`), and
# seconds of steps not bound by forward passes (download and conversion of the default model, reading of a benchmark).
RATES = {"score": 6e10, "float32": 7e10, "bfloat16": 1.05e11}
FIXED = {"model": 30.0, "data": 5.0, "sample": 5.0, "prune": 5.0, "report": 5.0, "register": 16.0}
MOST = 2  # GB of activations: `tasks.models.memory.LIMIT`
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
    """The steps in order, and what their estimate rests on."""

    lines: list[Line]
    basis: str


def make_plan(cell: Cell) -> Plan:
    """What a run of this cell would do, in order. Reads only."""
    size = _size(cell)
    work = forward_passes(cell, size["num_hidden_layers"])
    cost = prompt_tokens(cell) * _multiply_adds(size)
    timings = _timings(cell)
    # How fast this machine is, as a part of the typical one; a step that was timed goes by itself.
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
    if size is ASSUMED:
        basis += "; the model is not there yet: the size of the default model is assumed"
    else:
        basis += f"; memory: {held(cell, size)}"
    lines = []
    for step, (stage, status) in zip(STEPS, _statuses(cell).items(), strict=True):
        if status != "run":
            lines.append(Line(stage, status, 0, 0.0))
        elif step in FIXED and not work[step]:
            lines.append(Line(stage, status, 0, timings.get(step, FIXED[step])))
        else:
            seconds = work[step] * cost / _rate(cell, step) / speeds.get(step, speed)
            lines.append(Line(stage, status, round(work[step]), START + seconds))
    lines.append(Line("register", "check", 0, timings.get("register", FIXED["register"])))
    return Plan(lines, basis)


def held(cell: Cell, size: dict[str, int]) -> str:
    """What the steps that run the model hold where, in words.

    On a CPU the files of the weights are mapped, so that the system reads them as they are needed and may drop them; a
    layer whose weights are narrower is in float32 while it computes.
    """
    weights = sum(path.stat().st_size for path in cell.model_dir.glob("*.safetensors"))
    layer = 4 * _multiply_adds(size) / size["num_hidden_layers"]
    if (os.environ.get("DSM_DEVICE") or "cpu").startswith("cuda"):
        return f"weights of {weights / 1e9:.3g} GB on the GPU, and half of what is free there for activations"
    allowed = os.environ.get("DSM_MEMORY")
    rest = f"at most {allowed} bytes in all (DSM_MEMORY)" if allowed else f"at most {MOST} GB of activations"
    return (
        f"weights of {weights / 1e9:.3g} GB mapped from the disk, a layer of {layer / 1e9:.2g} GB in float32 at a "
        f"time, {rest}"
    )


def forward_passes(cell: Cell, layers: int) -> dict[str, float]:
    """Forward passes of the whole model over one prompt that each step spends; parts of one add up.

    An option of one token costs nothing beyond its prompt: longer ones are not counted.
    """
    settings, limits = cell.settings, cell.benchmark_spec.limits
    size = settings.adaptation.size
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
        "sample": 0 if settings.adaptation.selection == "random" else 2 * size,
        "score": size * (1 + _gradients(cell, layers) * (1 + BACKWARD)),
        "search": size * (1 + looked_at[settings.search.strategy] * SUFFIX),
        "prune": 0,
        "evaluate": limits.test * (1 + (2 + len(settings.evaluation.control_seeds)) * _behind(cell, layers)),
        "transfer": limits.transfer * (1 + pairs * SUFFIX),
        "report": 0,
    }


def _gradients(cell: Cell, layers: int) -> float:
    """Gradients of whole passes that `score` takes of a prompt, that of the full model among them."""
    rule = cell.settings.attribution
    if rule.method == "activation":
        return 0
    if rule.method in ("gradient_x_activation", "saliency"):
        return 1
    if rule.path == "single":
        return layers * _size(cell)["intermediate_size"] * SUFFIX / (1 + BACKWARD)
    fixed = rule.method in ("relu_gradient", "shapley") or rule.quadrature == "riemann_right"
    nodes = rule.steps if fixed else min(PROBES, rule.max_nodes)
    return 1 + nodes * (1 if rule.path == "all_layers" else layers * SUFFIX)


def _behind(cell: Cell, layers: int) -> float:
    """The part of a pass that lies behind the pruned layer, if that has been chosen."""
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


def _statuses(cell: Cell) -> dict[str, Status]:
    pipeline = cell.settings.pipeline
    stages = stages_of(cell.model, cell.benchmark)
    plan: dict[str, Status] = dict.fromkeys(stages, "run")
    if cell.name in pipeline.cells:
        return plan_stages(stages, cell.root)
    # `dsm run` will add the cell to the pipeline; until then DVC knows at most its model and its rows.
    model, data = cell.model in pipeline.models, cell.benchmark in pipeline.benchmarks
    for known, stage in ((model, stages[0]), (data, stages[1])):
        if known:
            plan |= plan_stages([stage], cell.root)
    return plan


def _size(cell: Cell) -> dict[str, int]:
    path = cell.model_dir / "config.json"
    if not path.exists():
        return ASSUMED
    config = read_json(path)
    config = config.get("text_config", config)
    return {name: int(config.get(name) or config["num_attention_heads"]) for name in ASSUMED}


def _multiply_adds(size: dict[str, int]) -> float:
    """Of one token in a forward pass, without the output embedding, which only the last token of a prompt needs."""
    heads = (2 * size["num_attention_heads"] + 2 * size["num_key_value_heads"]) / size["num_attention_heads"]
    return (
        size["num_hidden_layers"] * size["hidden_size"] * (heads * size["hidden_size"] + 3 * size["intermediate_size"])
    )


def _timings(cell: Cell) -> dict[str, float]:
    """Seconds that the steps took when they last ran on this machine."""
    return {path.stem: _seconds(path) for path in sorted((cell.scratch / "timings").glob("*.json"))}


def _seconds(path: Path) -> float:
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
