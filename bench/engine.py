"""The costly loops beside the plainest computation of the same numbers: `python -m bench.engine [LOOP ..]`.

Loops: scores, grid, transfer, evaluation; all of them by default. Needs a finished default cell (`make run`), an idle
machine and about a quarter of an hour. A side that is measured on a part of the work says on which, and is
extrapolated; the agreement on that part is printed, since only equal numbers are a fair comparison. Memory is the most
that the process held during the loop, less what it held before, plus the weights.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from bench import plain
from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.scoring import answers_unedited, answers_without, unit
from tasks.benchmarks.table import Rows, encode_rows, read_split
from tasks.method.attribute import Attributor
from tasks.method.grid import Grid, Part, parts_of
from tasks.method.integrated_gradients import LayerPath, layer_scores
from tasks.method.neurons import prominent_neurons
from tasks.method.options import Attribution
from tasks.method.quadrature import allowed
from tasks.models.loading import load
from tasks.models.products import Precision, linear
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell, open_cell
from tasks.runtime.files import read_jsonl, replacing

SPREAD = [2, 10, 19, 27]  # of 30 layers: as deep on average as all of them
PAPER = Attribution(quadrature="riemann_right", steps=20)
MANY = 96  # nodes of a layer whose budget is not to be what stops it
RATE_ROWS = 512  # of the product whose rate is the bound
KEPT = "data/scratch/bench"  # the three score matrices, for `python -m bench.quadrature`


def product_rate(model: Any) -> float:
    """Operations a second of a float32 product of the shape of the model's gates: what the hardware allows."""
    gate = next(m for name, m in model.named_modules() if name.endswith(("gate_proj", "gate_up_proj")))
    weight = gate.weight.detach().float()
    x, best = torch.randn(RATE_ROWS, weight.shape[1]), float("inf")
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(10):
            linear(x, weight)
        best = min(best, (time.perf_counter() - start) / 10)
    return float(2 * RATE_ROWS * weight.numel() / best)


@dataclass
class Bench:
    """What the loops share, and the table they fill.

    Attributes:
        rate: operations a second that float32 products reach here.
    """

    cell: Cell
    model: Any
    tokenizer: Any
    stack: DecoderStack
    table: Table
    rate: float
    weights: int = field(init=False)

    def __post_init__(self) -> None:
        self.weights = sum(p.numel() * p.element_size() for p in self.model.parameters())

    def row(
        self, what: str, seconds: float, memory: int, against: float | None, note: str, passes: float | None = None
    ) -> None:
        """One line: seconds, how many times as fast as `against` seconds, GB with the weights, share of the rate.

        Args:
            passes: tokens times layers that went through products, a backward pass counting as one more.
        """
        ratio = "" if against is None else f"{against / seconds:.1f}"
        share = "" if passes is None else f"{passes * 2 * self.layer_weights / seconds / self.rate:.0%}"
        self.table.add_row(what, f"{seconds:.1f}", ratio, share, f"{(memory + self.weights) / 1e9:.2f}", note)

    @property
    def layer_weights(self) -> int:
        """Weights of one layer that every token is multiplied with."""
        linears = [m for m in self.stack.layers[0].modules() if isinstance(m, torch.nn.Linear)]
        return sum(m.weight.numel() for m in linears)

    def tokens(self, rows: list[Encoded] | list[list[int]]) -> int:
        """Tokens of the packs of rows (with their options) or of prompts."""
        units = [unit(row) if isinstance(row, Encoded) else [(row, [len(row) - 1])] for row in rows]
        return sum(len(packed.tokens) for packed in self.stack.pack(units))


def measured(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """What `work` returns, the seconds it took, and the bytes that the process grew by at most."""
    process, done, peak = psutil.Process(os.getpid()), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        result = work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        thread.join()
    return result, seconds, peak[0]


def bench_scores(bench: Bench, prompts: list[list[int]]) -> None:
    """All layers of ten prompts by ours; Captum and the loop of knowledge neurons on one prompt and some layers."""
    layers, few = list(range(len(bench.stack))), prompts[:1]
    times = len(prompts) / len(few) * len(layers) / len(SPREAD)
    on = f"1 prompt of {len(prompts)}, layers {SPREAD}"

    theirs, captum, memory = measured(lambda: {at: plain.captum_scores(bench.model, at, few[0], 20) for at in SPREAD})
    captum *= times
    bench.row("scores: Captum, right Riemann 20", captum, memory, None, on)
    loop, seconds, memory = measured(
        lambda: {at: plain.knowledge_neuron_scores(bench.model, at, few[0], 20) for at in SPREAD}
    )
    gap = max(float((loop[at] - theirs[at]).abs().max()) for at in SPREAD)
    bench.row("scores: as knowledge neurons", seconds * times, memory, captum, f"{on}; within {gap:.0e}")
    same = {at: Attributor(bench.stack, few, PAPER).attribute((at,)) for at in SPREAD}
    gap = max(float((same[at].scores[0] - theirs[at]).abs().max()) for at in SPREAD)
    scale = max(float(theirs[at].abs().max()) for at in SPREAD)

    def ours(settings: Callable[[int], Attribution], of: list[int]) -> Any:
        """Results of some layers, their seconds with what comes before the first, and the memory they took."""
        path = LayerPath(bench.stack, prompts)
        one, start, _ = measured(path.at_one)
        by_layer, took, memory = {}, {}, 0
        for at in of:
            by_layer[at], took[at], grown = measured(partial(layer_scores, path, at, one, settings(at)))
            memory = max(memory, grown)
        return by_layer, took, start, memory

    paper, took, start, memory = ours(lambda _: PAPER, layers)
    worst = max(abs(r.gap) for r in paper.values())
    note = f"within {gap:.0e} of Captum (scale {scale:.2g}); largest gap {worst:.2g}"
    work = score_passes(bench, prompts, dict.fromkeys(layers, PAPER.steps))
    bench.row("scores: ours, right Riemann 20", start + sum(took.values()), memory, captum, note, work)

    def as_good(at: int) -> Attribution:
        # The tolerance that allows just the gap of the fixed rule on this layer.
        tolerance = max(abs(paper[at].gap), 1e-3) / allowed(paper[at].difference, 1.0)
        return Attribution(tolerance=tolerance, stability=0, max_nodes=MANY)

    integrals, took, start, memory = ours(as_good, layers)
    good = sum(abs(integrals[at].gap) <= max(abs(paper[at].gap), 1e-3) for at in layers)
    note = f"gap at most that of right Riemann 20 on {good} of {len(layers)} layers"
    work = score_passes(bench, prompts, {at: r.nodes for at, r in integrals.items()})
    bench.row("scores: ours, adaptive, no worse than that", start + sum(took.values()), memory, captum, note, work)

    settings = bench.cell.settings.attribution
    integrals, took, start, memory = ours(lambda _: settings, layers)
    rough = [at for at, r in integrals.items() if not r.converged(settings.tolerance, settings.stability)]
    nodes = sum(r.nodes for r in integrals.values())
    note = f"{nodes} nodes; not converged: layers {rough or 'none'}"
    work = score_passes(bench, prompts, {at: r.nodes for at, r in integrals.items()})
    bench.row("scores: ours, adaptive as configured", start + sum(took.values()), memory, captum, note, work)
    keep(bench, "paper", paper)
    keep(bench, "as_configured", integrals)

    # A larger budget changes only the layers that had spent theirs.
    more, longer, _, grown = ours(lambda _: settings.model_copy(update={"max_nodes": MANY}), rough)
    integrals, took = integrals | more, took | longer
    rough = [at for at, r in integrals.items() if not r.converged(settings.tolerance, settings.stability)]
    nodes = sum(r.nodes for r in integrals.values())
    note = f"{nodes} nodes; not converged: layers {rough or 'none'}"
    work = score_passes(bench, prompts, {at: r.nodes for at, r in integrals.items()})
    name = f"scores: ours, adaptive, up to {MANY} nodes"
    bench.row(name, start + sum(took.values()), max(memory, grown), captum, note, work)
    keep(bench, "converged", integrals)


def score_passes(bench: Bench, prompts: list[list[int]], nodes: dict[int, int]) -> float:
    """Tokens times layers, up and down: the unedited model, and each layer's nodes through the layers above it."""
    layers = len(bench.stack)
    return 2.0 * bench.tokens(prompts) * (layers + sum(count * (layers - 1 - at) for at, count in nodes.items()))


def keep(bench: Bench, name: str, results: dict[int, Any]) -> None:
    """Saves the score matrix of a rule for `python -m bench.quadrature_nodes`."""
    path = bench.cell.root / KEPT / f"{name}.safetensors"
    names = ("gap", "difference", "error", "nodes")
    few = {name: torch.tensor([getattr(result, name) for result in results.values()]) for name in names}
    with replacing(path) as temporary:
        save_file({"scores": torch.stack([result.scores for result in results.values()]).float(), **few}, temporary)


def bench_grid(bench: Bench, rows: Rows, layers: list[int], few: int, name: str) -> None:
    """All fractions of some layers on rows: the plain loop on the first `few` rows, smallest and largest fraction."""
    scores = load_file(bench.cell.scores)["scores"].numpy()
    fractions = bench.cell.settings.search.fractions
    ends = [fractions[0], fractions[-1]]
    part = rows.encoded[:few]
    if any(len(option) > 1 for row in part for option in row.options):
        sys.exit("error: the plain grid reads options of one token only")
    blocks = [part[i : i + 10] for i in range(0, few, 10)]
    expected, seconds, memory = measured(
        lambda: {
            (at, p): np.concatenate([grid_block(bench, block, at, p, scores) for block in blocks])
            for at in layers
            for p in ends
        }
    )
    naive = seconds * len(rows.encoded) / few * len(fractions) / len(ends) * len(bench.stack) / len(layers)
    note = f"{few} of {len(rows.encoded)} rows in batches of 10, {len(expected)} pairs"
    bench.row(f"{name}: whole model per pair", naive, memory, None, note)

    exact = np.empty(0)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:

        def ours(precision: Precision = precision) -> dict[Part, Any]:
            grid = Grid(bench.stack, rows.encoded, rows.gold, scores)
            parts = [p for p in parts_of(dict.fromkeys(layers, fractions), len(grid.sizes), precision) if p.layer >= 0]
            by_part: dict[Part, Any] = {}
            for group in grid.together(parts):
                by_part |= dict(zip(group, grid.compute_together(group), strict=True))
            return by_part

        values, seconds, memory = measured(ours)
        passes = len(bench.stack) + len(fractions) * sum(len(bench.stack) - 1 - at for at in layers)
        work = bench.tokens(rows.encoded) * passes * len(bench.stack) / len(layers)
        seconds *= len(bench.stack) / len(layers)
        predicted = np.concatenate([value["predicted"] for value in values.values()], axis=1)
        if precision == "float32":
            exact = predicted
            note = f"layers {layers}; log-probabilities within {grid_gap(bench, part, scores, expected):.0e}"
        else:
            note = f"{(predicted == exact).mean():.2%} of {exact.size} predictions as in float32"
        bench.row(f"{name}: ours, {precision}", seconds, memory, naive, note, work)


def grid_block(bench: Bench, block: list[Encoded], layer: int, fraction: float, scores: np.ndarray) -> np.ndarray:
    """One pair of the plain grid on a batch of rows."""
    return plain.grid_logprobs(bench.model, block, layer, prominent_neurons(scores[layer], fraction))


def grid_gap(bench: Bench, rows: list[Encoded], scores: np.ndarray, expected: dict[Any, np.ndarray]) -> float:
    """The largest difference between the plain grid's log-probabilities and ours."""
    return max(
        float(np.abs(np.stack([row[0] for row in answers.logprobs]) - values).max())
        for (at, p), values in expected.items()
        for answers in [answers_without(bench.stack, rows, at, [prominent_neurons(scores[at], p)])]
    )


def bench_evaluation(bench: Bench, rows: Rows) -> None:
    """The unpruned model on test rows, beside lm-evaluation-harness at the better of two batch sizes."""
    prompts, options = list(rows.table["prompt"]), [list(few) for few in rows.table["options"]]
    best: tuple[Any, float, int, int] | None = None
    for batch in (1, 16):
        theirs, seconds, memory = measured(
            partial(plain.harness_logprobs, bench.model, bench.tokenizer, prompts, options, batch)
        )
        if best is None or seconds < best[1]:
            best = theirs, seconds, memory, batch
    assert best is not None
    theirs, against, memory, batch = best
    bench.row("evaluation: lm-evaluation-harness", against, memory, None, f"{len(prompts)} rows, batch size {batch}")
    ours, seconds, memory = measured(lambda: answers_unedited(bench.stack, rows.encoded))
    logprobs = [row[0] for row in ours.logprobs]
    gap = max(float(np.abs(a - b).max()) for a, b in zip(logprobs, theirs, strict=True))
    same = np.mean([a.argmax() == b.argmax() for a, b in zip(logprobs, theirs, strict=True)])
    note = f"{same:.2%} of the predictions the same, log-probabilities within {gap:.0e}"
    work = bench.tokens(rows.encoded) * len(bench.stack)
    bench.row("evaluation: ours", seconds, memory, against, note, work)


def main() -> None:
    """Measures and prints."""
    loops = ["scores", "grid", "transfer", "evaluation"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loops", nargs="*", metavar="LOOP", help=", ".join(loops), default=loops)
    parser.add_argument("--prompts", type=int, default=10, help="adaptation prompts that are scored")
    arguments = parser.parse_args()
    chosen = arguments.loops
    if unknown := set(chosen) - set(loops):
        parser.error(f"no such loop: {sorted(unknown)[0]}; choose from {', '.join(loops)}")
    cell = open_cell()
    if not cell.scores.exists():
        sys.exit("error: the default cell does not exist; run `make run` first")
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    title = f"{cell.name}, {torch.get_num_threads()} threads"
    rate = product_rate(loaded.model)
    caption = (
        "s: of the whole loop; x: times as fast as the plain side of the same loop; %: of the rate of float32 products"
        f", {rate / 1e9:.0f} GFLOP/s here ({RATE_ROWS} rows by a gate), that the products of the loop reach"
    )
    table = Table(title=title, caption=caption)
    for name in ("loop", "s", "x", "%", "GB", "on what, and how far they agree"):
        table.add_column(name, justify="left" if " " in name or name == "loop" else "right")
    bench = Bench(cell, loaded.model, loaded.tokenizer, stack, table, rate)
    samples = read_jsonl(cell.samples)
    adaptation = encode_rows(pd.DataFrame(samples), loaded.tokenizer, stack.context)

    def tested(number: int) -> Rows:
        return encode_rows(read_split(cell.test, number), loaded.tokenizer, stack.context)

    for loop in chosen:
        if loop == "scores":
            bench_scores(bench, [row.prompt for row in adaptation.encoded[: arguments.prompts]])
        elif loop == "grid":
            bench_grid(bench, adaptation, list(range(len(stack))), len(samples), "grid, 10 rows")
        elif loop == "transfer":
            bench_grid(bench, tested(100), SPREAD, 20, "transfer grid, 100 rows")
        else:
            bench_evaluation(bench, tested(300))
        Console(width=170).print(table)  # after each loop: the next may take long


if __name__ == "__main__":
    main()
