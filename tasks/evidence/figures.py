"""The figures of a cell as SVG text.

The same data give the same bytes. Colours of text and lines are CSS variables with a fallback, and colour maps fade to
transparent, so that a figure is readable on light and dark pages and as a file of its own.
"""

from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, SymLogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from tasks.evidence.reading import Evidence
from tasks.evidence.statistics import standard_error
from tasks.evidence.style import ACCENT, INK, LINE, MUTED, STYLE, WARN, svg
from tasks.evidence.verdict import measured
from tasks.method.scores import Scores

_LOW, _HIGH = "#d9650f", "#3b7cf0"  # orange and blue are distinct with colour blindness, on white and on black
_DIVERGING = LinearSegmentedColormap.from_list(
    "diverging", [(0.0, to_rgba(_LOW, 1)), (0.5, to_rgba(_LOW, 0)), (0.5, to_rgba(_HIGH, 0)), (1.0, to_rgba(_HIGH, 1))]
)
WIDTH = 4.0  # inches; the width of a phone's page, at which text has its own size
_BINS = 192  # columns of the score map; a screen does not show more


def figures(evidence: Evidence) -> dict[str, str]:
    """Every figure of a cell by name.

    Figures of the transfer check are included if it was run, that of completeness if every layer has a gap.
    """
    layer, fraction = int(evidence.pruned["layer"]), float(evidence.pruned["fraction"])
    chosen = (layer, fraction)
    plots = {
        "accuracy": accuracy_figure(evidence.evaluation),
        "grid_accuracy": grid_figure(evidence.grid, "accuracy", "grid_accuracy", chosen=chosen),
        "grid_margin": grid_figure(evidence.grid, "margin", "grid_margin", chosen=chosen),
        "scores": scores_figure(evidence.scores, layer=layer, pruned=len(evidence.pruned["neurons"])),
    }
    if evidence.scores.by_layer:
        plots["completeness"] = completeness_figure(evidence.scores)
    if evidence.has_transfer:
        best = evidence.transfer["best"]
        plots["grid_transfer"] = grid_figure(
            evidence.transfer_grid,
            "accuracy",
            "grid_transfer",
            chosen=chosen,
            best=(int(best["layer"]), float(best["fraction"])),
        )
        for value in ("accuracy", "margin"):
            plots[f"transfer_{value}"] = transfer_figure(evidence.grid, evidence.transfer_grid, value, chosen=chosen)
    return plots


def accuracy_figure(evaluation: dict[str, Any]) -> str:
    """Accuracy of base, pruned and every random draw, each with its standard error, and of the majority answer.

    Below it are the paired differences of accuracy and exact match with their intervals. The bars above belong to one
    system each; since all systems answer the same rows, whether they overlap says little about a difference.
    """
    systems, n = evaluation["systems"], evaluation["n"]
    draws = list(systems["random"]["by_seed"].values())
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        axes, lower = figure.subplots(2, 1, height_ratios=[3, 1.7])
        for y, name, colour in ((0, "base", INK), (1, "pruned", ACCENT)):
            system = systems[name]
            axes.errorbar(
                system["accuracy"], y, xerr=system["stderr"], fmt="o", ms=8, lw=2, color=colour, ecolor=colour
            )
        axes.errorbar(draws, [2.0] * len(draws), fmt="o", ms=8, mfc="none", mec=MUTED, mew=1.2)
        mean = systems["random"]["accuracy"]
        axes.errorbar(mean, 2, xerr=standard_error(mean, n), fmt="|", ms=12, mew=2, lw=2, color=MUTED, ecolor=MUTED)
        majority = max(sum(row) for row in systems["base"]["confusion"]) / n
        axes.axvline(majority, color=LINE, lw=1.2, ls=(0, (4, 3)), zorder=0)
        axes.annotate(
            "majority answer", (majority, 1), (0, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", fontsize=8, color=MUTED,
        )  # fmt: skip
        axes.set_yticks([0, 1, 2], ["base", "pruned", "random"], fontsize=9)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set(ylim=(2.5, -0.7), xlabel="accuracy (bars: ± one standard error)")
        axes.margins(x=0.12)
        compared = [measure["pruned_vs_base"] for measure in measured(evaluation).values()]
        for y, comparison in enumerate(compared):
            lower.plot(comparison["interval"], [y, y], color=ACCENT, lw=2)
            lower.plot(comparison["difference"], y, "o", ms=8, color=ACCENT)
        lower.axvline(0, color=LINE, lw=1.2, ls=(0, (4, 3)), zorder=0)
        lower.set_yticks([0, 1], ["accuracy", "exact\nmatch"], fontsize=9)
        lower.set(ylim=(1.6, -0.6), xlabel="pruned − base, paired (bars: 95 % interval)")
        lower.margins(x=0.12)
        lower.tick_params(axis="y", length=0, labelcolor=INK)
        for part in (axes, lower):
            part.spines["left"].set_visible(False)
        return svg(figure, "accuracy")


def grid_figure(
    grid: pd.DataFrame,
    value: str,
    name: str,
    *,
    chosen: tuple[int, float],
    best: tuple[int, float] | None = None,
) -> str:
    """Layers x fractions, coloured by the difference from the unpruned model (the row with layer -1).

    Pairs that a cheaper search did not evaluate stay blank.

    Args:
        grid: the columns of grid.parquet.
        value: `accuracy` or `margin`.
        name: of the figure; makes the SVG's identifiers its own.
        chosen: (layer, fraction), outlined.
        best: another pair, outlined with dashes.
    """
    base = float(grid.loc[grid["layer"] < 0, value].iloc[0])
    table = grid[grid["layer"] >= 0].pivot(index="layer", columns="fraction", values=value).sort_index()
    values = table.to_numpy(dtype=np.float64)
    span = float(np.nanmax(np.abs(values - base))) or 1.0
    rows, columns = values.shape
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(max(3.0, 0.36 * columns + 0.8), max(2.0, 0.2 * rows + 1.0)), layout="constrained")
        axes = figure.subplots()
        norm = Normalize(base - span, base + span)
        image = axes.imshow(values, cmap=_DIVERGING, norm=norm, aspect="auto", interpolation="none")
        for (row, column), cell in np.ndenumerate(values):
            if not np.isnan(cell):
                axes.text(column, row, _short(cell, value), ha="center", va="center", fontsize=8)
        for pair, style in ((best, (0, (2, 1.5))), (chosen, "-")):
            if pair is not None:
                x, y = table.columns.tolist().index(pair[1]), table.index.tolist().index(pair[0])  # type: ignore[arg-type]
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec=INK, lw=2, ls=style, clip_on=False))
        axes.set_xticks(range(columns), [f"{100 * fraction:.4g}" for fraction in table.columns])
        axes.set_yticks(range(rows), [str(layer) for layer in table.index])
        axes.tick_params(length=0)
        axes.set(xlabel="neurons of the layer pruned (%)", ylabel="layer")
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.03, aspect=40, pad=0.01)
        bar.outline.set_visible(False)
        bar.set_ticks([base - span, base, base + span])
        bar.set_ticklabels([f"−{_short(span, value)}", f"unpruned: {_short(base, value)}", f"+{_short(span, value)}"])
        bar.ax.tick_params(length=0)
        return svg(figure, name)


def scores_figure(scores: Scores, *, layer: int, pruned: int) -> str:
    """Scores of every layer, sorted from the highest to the lowest; the pruned neurons are outlined.

    Wide layers are averaged over neighbours in that order, into at most 192 columns.
    """
    layers, d_ff = scores.values.shape
    ordered = -np.sort(-scores.ranked.astype(np.float64), axis=1)
    binned = np.stack([part.mean(axis=1) for part in np.array_split(ordered, min(_BINS, d_ff), axis=1)], axis=1)
    top = float(np.abs(binned).max()) or 1.0
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, max(2.2, 0.13 * layers + 1.1)), layout="constrained")
        axes = figure.subplots()
        norm = SymLogNorm(linthresh=top / 1000, vmin=-top, vmax=top)
        image = axes.imshow(
            binned, cmap=_DIVERGING, norm=norm, aspect="auto", interpolation="none", extent=(0, 100, layers - 0.5, -0.5)
        )
        axes.add_patch(Rectangle((0, layer - 0.5), 100 * pruned / d_ff, 1, fill=False, ec=INK, lw=1.8, clip_on=False))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.set(xlabel="neurons of the layer, from the highest to the lowest score (%)", ylabel="layer")
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, location="right", fraction=0.03, aspect=30, pad=0.01)
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.set_ticks([-top, -top / 30, 0, top / 30, top])
        bar.set_ticklabels([_number(tick) for tick in (-top, -top / 30, 0, top / 30, top)])
        bar.set_label("score (logit)")
        return svg(figure, "scores")


def completeness_figure(scores: Scores) -> str:
    """Completeness error of every layer, as a part of max(|F(1) - F(0)|, 1), and the nodes it took."""
    gaps = np.maximum(scores.relative_error, 1e-6)  # a log axis has no zero
    layers = np.arange(gaps.size)
    bad = np.isin(layers, scores.unconverged)
    tolerance = scores.header.get("tolerance")
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        upper.vlines(layers, 1e-6, gaps, color=LINE, lw=1)
        upper.plot(layers[~bad], gaps[~bad], "o", ms=5, color=ACCENT)
        upper.plot(layers[bad], gaps[bad], "X", ms=8, color=WARN)
        ceiling = max(float(gaps.max()), tolerance or 0.0) * 3
        upper.set(yscale="log", ylabel="relative error", ylim=(min(float(gaps.min()), 1e-4) / 2, ceiling))
        if tolerance is not None:
            upper.axhline(tolerance, color=WARN, lw=1, ls=(0, (4, 3)))
            upper.annotate(
                f"tolerance {tolerance:g}", (1, tolerance), (0, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", fontsize=8, color=WARN,
            )  # fmt: skip
        upper.yaxis.set_minor_locator(NullLocator())
        upper.yaxis.set_major_locator(FixedLocator([10.0**power for power in range(-6, 4, 2)]))
        upper.set_yticks([10.0**power for power in range(-6, 4, 2)], [f"{10.0**power:g}" for power in range(-6, 4, 2)])
        upper.set_ylim(min(float(gaps.min()), 1e-4) / 2, ceiling)
        lower.bar(layers, scores.nodes, width=0.6, color=np.where(bad, WARN, MUTED).tolist())
        lower.set(xlabel="layer", ylabel="nodes")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        return svg(figure, "completeness")


def transfer_figure(grid: pd.DataFrame, transfer_grid: pd.DataFrame, value: str, *, chosen: tuple[int, float]) -> str:
    """Accuracy or margin, adaptation set against test rows; one point for each pair, larger where several coincide."""
    both = grid.merge(transfer_grid, on=["layer", "fraction"], suffixes=("_adaptation", "_test"))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        _scatter(figure.subplots(), both, value, chosen)
        return svg(figure, f"transfer_{value}")


def _scatter(axes: Axes, both: pd.DataFrame, value: str, chosen: tuple[int, float]) -> None:
    x, y = f"{value}_adaptation", f"{value}_test"
    pairs = both[both["layer"] >= 0]
    # Ten rows give eleven accuracies, so most pairs coincide; the area shows how many.
    points = pairs.round({x: 9, y: 9}).groupby([x, y]).size().reset_index(name="count")
    for count in sorted(set(points["count"])):  # not scatter, which repeats the marker's outline for every point
        same = points[points["count"] == count]
        axes.plot(same[x], same[y], "o", ms=4 * count**0.5, color=_HIGH, alpha=0.55, mew=0)
    base = both[both["layer"] < 0].iloc[0]
    axes.axvline(base[x], color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
    axes.axhline(base[y], color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
    mine = pairs[(pairs["layer"] == chosen[0]) & (pairs["fraction"] == chosen[1])].iloc[0]
    axes.plot(mine[x], mine[y], "D", ms=9, mfc="none", mec=INK, mew=1.8)
    axes.annotate("chosen", (mine[x], mine[y]), (-8, 8), textcoords="offset points", ha="right", fontsize=8)
    axes.set(xlabel=f"{value} on the adaptation set", ylabel=f"{value} on test rows")
    axes.margins(0.12)


def _short(value: float, kind: str) -> str:
    """A number that fits into a cell of the map: `.713`, `1`, `−0.4`."""
    if kind == "margin":
        return f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return text.removeprefix("0").replace("-", "−") or "0"


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")
