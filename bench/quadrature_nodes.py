"""Writes the tables and the figure of docs/quadrature.md: `python -m bench.quadrature_nodes`.

Reads the score matrices that `python -m bench.engine scores` writes, and searches the grid with each of them.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from safetensors.numpy import load_file
from scipy.stats import spearmanr

from bench.engine import KEPT, MANY
from tasks.benchmarks.table import encode_rows
from tasks.method.algorithm import search_rows
from tasks.method.neurons import top_neurons
from tasks.method.options import Search
from tasks.method.quadrature import allowed
from tasks.method.recipe import choose
from tasks.method.scores import as_scores
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import open_cell
from tasks.runtime.files import read_jsonl

RULES = {
    "paper": "right Riemann, 20 steps",
    "as_configured": "adaptive, 32 nodes",
    "converged": f"adaptive, {MANY} nodes",
}
PAGE = Path("docs/quadrature.md")
START, END = "<!-- made by python -m bench.quadrature_nodes -->", "<!-- end -->"


def relative(result: dict[str, Any], name: str) -> Any:
    """|gap| or error of each layer, divided by max(|F(1) - F(0)|, 1)."""
    return np.abs(result[name]) / [allowed(float(difference), 1.0) for difference in result["difference"]]


def draw(results: dict[str, Any]) -> None:
    """Draws the gap of each rule and its number of nodes."""
    colours = {"paper": "#d95f02", "as_configured": "#1f78b4", "converged": "#33a02c"}
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5.5), sharex=True, height_ratios=[2, 1], layout="tight")
    for name, result in results.items():
        layers = np.arange(len(result["nodes"]))
        above.plot(layers, relative(result, "gap").clip(1e-6), "o-", ms=4, lw=1, color=colours[name], label=RULES[name])
        below.plot(layers, result["nodes"], "o-", ms=4, lw=1, color=colours[name])
    above.axhline(0.01, color="grey", lw=1, ls="--")
    above.axhline(1, color="black", lw=1)
    above.set(yscale="log", ylabel="|gap| / max(|F(1) − F(0)|, 1)")
    above.legend(frameon=False)
    below.set(yscale="log", ylabel="nodes", xlabel="layer")
    plt.rcParams["svg.hashsalt"] = "quadrature"
    figure.savefig(PAGE.with_suffix(".svg"), metadata={"Date": None})


def tables(results: dict[str, Any], chosen: dict[str, dict[str, Any]]) -> list[str]:
    """Both tables as lines of Markdown."""
    best = results["converged"]
    lines = [
        "| rule | gradient evaluations | gap over 1 % in layers | largest | Spearman with the last row (min) "
        "| top 10 % shared (min) | chosen pair | accuracy on the ten |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        part = relative(result, "gap")
        ranks = [spearmanr(a, b).statistic for a, b in zip(result["scores"], best["scores"], strict=True)]
        number = result["scores"].shape[1] // 10
        shared = [
            len(np.intersect1d(top_neurons(a, number), top_neurons(b, number))) / number
            for a, b in zip(result["scores"], best["scores"], strict=True)
        ]
        pair = chosen[name]
        lines.append(
            f"| {RULES[name]} | {result['nodes'].sum()} | {', '.join(map(str, np.flatnonzero(part > 0.01))) or 'none'} "
            f"| {part.max():.3g} | {np.mean(ranks):.3f} ({min(ranks):.2f}) | {np.mean(shared):.2f} ({min(shared):.2f}) "
            f"| layer {int(pair['layer'])}, {100 * pair['fraction']:.0f} % | {pair['accuracy']:.1f} |"
        )
    lines += [
        "",
        f"| layer | F(1) − F(0) | gap, right Riemann 20 | gap, 32 nodes | nodes | gap, {MANY} nodes | error | nodes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    paper, few = results["paper"], results["as_configured"]
    for layer in range(len(best["nodes"])):
        lines.append(
            f"| {layer} | {best['difference'][layer]:.3f} | {paper['gap'][layer]:+.4f} | {few['gap'][layer]:+.4f} "
            f"| {few['nodes'][layer]} | {best['gap'][layer]:+.4f} | {best['error'][layer]:.4f} "
            f"| {best['nodes'][layer]} |"
        )
    return lines


def main() -> None:
    """Searches the grid with each score matrix, and writes the figure and the tables."""
    cell = open_cell()
    paths = {name: cell.root / KEPT / f"{name}.safetensors" for name in RULES}
    if not all(path.exists() for path in paths.values()):
        sys.exit("error: no scores to compare; run `python -m bench.engine scores` first")
    results = {name: load_file(path) for name, path in paths.items()}
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(pd.DataFrame(read_jsonl(cell.samples)), loaded.tokenizer, stack.context)
    chosen = {}
    for name, result in results.items():
        scores = as_scores(result["scores"], "gate_proj", len(rows.gold))
        grid, _ = search_rows(
            stack, loaded.tokenizer, rows, scores, Search(fractions=cell.settings.search.fractions), "bfloat16"
        )
        chosen[name] = choose(grid)[0]
    draw(results)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text("\n".join([before + START, "", *tables(results, chosen), "", END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
