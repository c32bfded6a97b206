"""The results of the cells, read from pruned.json and evaluation.json, and the tables that show them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.tables import Column, FittingTable
from tasks.evidence.verdict import signed
from tasks.pipeline.cell import Cell
from tasks.pipeline.settings import Settings
from tasks.runtime.files import read_json


@dataclass(frozen=True)
class Measure:
    """Accuracy or exact match of a cell's systems, as parts of one, with standard errors.

    Attributes:
        random: the mean over the draws of random neurons.
        difference, interval: pruned minus base on the same rows, and its 95 % confidence interval.
        p: of the exact McNemar test, pruned against base.
    """

    base: float
    base_stderr: float
    pruned: float
    pruned_stderr: float
    random: float
    random_stderr: float
    difference: float
    stderr: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Result:
    """The result of one cell on `n` test rows.

    Attributes:
        base_acc_norm, pruned_acc_norm: accuracy by the log-probability per character.
        base_answers, pruned_answers: how often each option was predicted, in the order of the options.
    """

    model: str
    benchmark: str
    n: int
    accuracy: Measure
    exact_match: Measure
    base_acc_norm: float
    pruned_acc_norm: float
    random_seeds: int
    layer: int
    fraction: float
    neurons: int
    base_answers: list[int]
    pruned_answers: list[int]


def read_result(cell: Cell) -> Result | None:
    """The result of a cell. None if it has none, or one of an earlier version, which the next run replaces."""
    if not (cell.evaluation.exists() and cell.pruned.exists()):
        return None
    evaluation, pruned = read_json(cell.evaluation), read_json(cell.pruned)
    systems, comparisons = evaluation["systems"], evaluation["comparisons"]
    if "exact_match" not in comparisons:
        return None
    return Result(
        model=cell.model,
        benchmark=cell.benchmark,
        n=evaluation["n"],
        accuracy=_measure(systems, comparisons, "accuracy", "stderr"),
        exact_match=_measure(systems, comparisons["exact_match"], "exact_match", "exact_match_stderr"),
        base_acc_norm=systems["base"]["acc_norm"],
        pruned_acc_norm=systems["pruned"]["acc_norm"],
        random_seeds=len(systems["random"]["by_seed"]),
        layer=pruned["layer"],
        fraction=pruned["fraction"],
        neurons=len(pruned["neurons"]),
        base_answers=systems["base"]["predicted"],
        pruned_answers=systems["pruned"]["predicted"],
    )


def _measure(systems: dict[str, Any], comparisons: dict[str, Any], name: str, stderr: str) -> Measure:
    compared = comparisons["pruned_vs_base"]
    values = {system: systems[system][name] for system in ("base", "pruned", "random")}
    errors = {f"{system}_stderr": systems[system][stderr] for system in values}
    return Measure(
        **values,
        **errors,
        difference=compared["difference"],
        stderr=compared["stderr"],
        interval=tuple(compared["interval"]),
        p=compared["p"],
    )


def all_results(root: Path, settings: Settings) -> list[Result]:
    """The results of every cell there is, by name. Says on stderr which cells have one of an earlier version."""
    results = []
    for path in sorted((root / "data" / "cells").glob("*/*/evaluation.json")):
        cell = Cell(root, path.parent.parent.name, path.parent.name, settings)
        if result := read_result(cell):
            results.append(result)
        elif cell.pruned.exists():
            again = f"dsm run --model {cell.model} --benchmark {cell.benchmark}"
            print(f"{cell.name}: its result was made by an earlier version; `{again}` makes it again", file=sys.stderr)
    return results


LEGEND = (
    "Base → pruned; the paired difference ± its standard error, its 95 % interval, and p of the exact McNemar test. "
    "random: as many random neurons of the same layer, mean over the draws."
)
# What the columns after the third one mean; a narrow terminal leaves these out.
OPTIONAL = {
    "acc_norm": "acc_norm: accuracy by the log-probability per character.",
    "answers": "answers: how often each option was predicted.",
}
HEADER = ("cell", "accuracy", "exact match", *OPTIONAL)
NAMES = 22  # characters to which the first column may shrink


def _lines(result: Result) -> dict[str, list[str]]:
    """What each column of the table says of a cell, line by line."""
    draws = f"{result.random_seeds} random draw{'s' if result.random_seeds != 1 else ''}"
    pruned = f"layer {result.layer}, {100 * result.fraction:.4g} %"
    return {
        "cell": [result.model, f"on {result.benchmark}", pruned, f"n = {result.n}", draws],
        "accuracy": _measure_lines(result.accuracy),
        "exact match": _measure_lines(result.exact_match),
        "acc_norm": [f"{result.base_acc_norm:.3f} → {result.pruned_acc_norm:.3f}"],
        "answers": [f"{_counts(result.base_answers)} →", _counts(result.pruned_answers)],
    }


def _measure_lines(measure: Measure) -> list[str]:
    low, high = measure.interval
    return [
        f"{measure.base:.3f} → {measure.pruned:.3f}",
        f"{signed(measure.difference)} ± {measure.stderr:.3f}",
        f"{signed(low)} to {signed(high)}",
        "p < 0.001" if measure.p < 0.001 else f"p = {measure.p:.2g}",
        f"random {measure.random:.3f}",
    ]


def _counts(numbers: Sequence[int]) -> str:
    return ":".join(map(str, numbers))


def as_markdown(results: Sequence[Result]) -> str:
    """The table for a Prefect artifact or a page; `<br>` separates the lines of a cell."""
    rows = [["<br>".join(lines) for lines in _lines(result).values()] for result in results]
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{_legend(HEADER)}"


def _legend(columns: Sequence[str]) -> str:
    return " ".join([LEGEND, *(OPTIONAL[name] for name in columns if name in OPTIONAL)])


def as_table(results: Sequence[Result]) -> FittingTable:
    """The table for a terminal."""
    columns = [Column("cell", least=NAMES), *(Column(name, optional=name in OPTIONAL) for name in HEADER[1:])]
    rows: list[list[str]] = []
    for result in results:
        rows += [[]] if rows else []
        rows.append(["\n".join(lines) for lines in _lines(result).values()])
    return FittingTable(columns, rows, title="Results on the test split", caption=_legend)
