"""A study's result as a table and as a plot."""

from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from tasks.evidence.style import ACCENT, INK, LINE, MUTED, STYLE, svg
from tasks.evidence.verdict import p_value

BARS = "bars: one standard error of each alone"
SHORT = 46  # characters of a label on a plot


def table(result: dict[str, Any]) -> list[list[str]]:
    """The records as rows of text, the header first."""
    records = result["records"]
    more = list(dict.fromkeys(name for record in records for name in record["more"]))
    tested = any(record["p"] is not None for record in records)
    header = ["", result["unit"], "n", *(["p"] if tested else []), *more]
    rows = [header]
    for record in records:
        value = "–" if record["value"] is None else f"{record['value']:.3f}"
        if record["stderr"] is not None:
            value += f" ± {record['stderr']:.3f}"
        row = [record["label"], value, "" if record["n"] is None else str(record["n"])]
        if tested:
            row.append("" if record["p"] is None else p_value(record["p"]).removeprefix("p = ").removeprefix("p "))
        rows.append(row + [_shown(record["more"].get(name, "")) for name in more])
    return rows


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def markdown(rows: list[list[str]]) -> str:
    """Rows of text as a Markdown table; the first row is the header."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [cells[0], ["---"] + ["---:"] * (len(cells[0]) - 1), *cells[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(result: dict[str, Any], *, x: str) -> str:
    """Values with one standard error: over a numeric axis named `x`, or as a list if `x` is empty."""
    records = [record for record in result["records"] if record["value"] is not None]
    with matplotlib.style.context(["default", STYLE]):
        numeric = bool(x) and all(record["x"] is not None for record in records)
        figure = Figure(figsize=(7.2, 3.2 if numeric else 0.9 + 0.24 * len(records)), layout="constrained")
        axes = figure.subplots()
        if numeric:
            groups = list(dict.fromkeys(record["group"] for record in records))
            for group, colour, mark in zip(groups, (ACCENT, MUTED, INK), ("o-", "s--", "^:"), strict=False):
                of_group = [record for record in records if record["group"] == group]
                axes.errorbar(
                    [record["x"] for record in of_group],
                    [record["value"] for record in of_group],
                    yerr=[record["stderr"] or 0 for record in of_group],
                    fmt=mark, color=colour, ecolor=colour, ms=5, lw=1.5, elinewidth=1, label=group,
                )  # fmt: skip
            axes.set(xlabel=f"{x} ({BARS})", ylabel=result["unit"])
            if len(groups) > 1:
                axes.legend(frameon=False, fontsize=8)
        else:
            for y, record in enumerate(records):
                colour = INK if y == 0 else ACCENT
                axes.errorbar(
                    record["value"], y, xerr=record["stderr"] or 0, fmt="o", ms=5, lw=1.5, color=colour, ecolor=colour
                )
            if records and result["unit"] != "seconds an example":
                axes.axvline(records[0]["value"], color=LINE, lw=1.2, ls=(0, (4, 3)), zorder=0)
            axes.set_yticks(range(len(records)), [_cut(record["label"]) for record in records], fontsize=8)
            axes.tick_params(axis="y", length=0, labelcolor=INK)
            axes.set(ylim=(len(records) - 0.4, -0.6), xlabel=f"{result['unit']} ({BARS})")
            axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        return svg(figure, f"study_{result['study']}")


def _cut(label: str) -> str:
    return label if len(label) <= SHORT else label[: SHORT - 1] + "…"
