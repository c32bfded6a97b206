"""What came out of the cells: read from pruned.json and evaluation.json, shown as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.pipeline.cell import Cell
from tasks.pipeline.settings import Settings
from tasks.runtime.files import read_json

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Result:
    """One cell. Accuracies and standard errors are parts of one; `p` is McNemar's, pruned against base, on `n` rows.

    `base_answers`, `pruned_answers`: how often each option was predicted, in the order of the options.
    """

    model: str
    benchmark: str
    n: int
    base: float
    base_stderr: float
    pruned: float
    pruned_stderr: float
    random: float
    random_stderr: float
    random_seeds: int
    p: float
    layer: int
    fraction: float
    base_answers: list[int]
    pruned_answers: list[int]


def read_result(cell: Cell) -> Result | None:
    """The result of a cell, None if it has none yet."""
    if not (cell.evaluation.exists() and cell.pruned.exists()):
        return None
    evaluation, pruned = read_json(cell.evaluation), read_json(cell.pruned)
    systems = evaluation["systems"]
    return Result(
        model=cell.model,
        benchmark=cell.benchmark,
        n=evaluation["n"],
        base=systems["base"]["accuracy"],
        base_stderr=systems["base"]["stderr"],
        pruned=systems["pruned"]["accuracy"],
        pruned_stderr=systems["pruned"]["stderr"],
        random=systems["random"]["accuracy"],
        random_stderr=systems["random"]["stderr"],
        random_seeds=len(systems["random"]["by_seed"]),
        p=evaluation["comparisons"]["pruned_vs_base"]["p"],
        layer=pruned["layer"],
        fraction=pruned["fraction"],
        base_answers=systems["base"]["predicted"],
        pruned_answers=systems["pruned"]["predicted"],
    )


def all_results(root: Path, settings: Settings) -> list[Result]:
    """The results of every cell there is, by name."""
    cells = sorted((root / "data" / "cells").glob("*/*/evaluation.json"))
    found = [read_result(Cell(root, path.parent.parent.name, path.parent.name, settings)) for path in cells]
    return [result for result in found if result]


HEADER = ("model", "benchmark", "base", "pruned", "random", "n", "p", "layer", "fraction", "answers")


def row(result: Result) -> tuple[str, ...]:
    """The cells of a table under HEADER."""
    return (
        result.model,
        result.benchmark,
        f"{result.base:.3f} ± {result.base_stderr:.3f}",
        f"{result.pruned:.3f} ± {result.pruned_stderr:.3f}",
        f"{result.random:.3f} ± {result.random_stderr:.3f}",
        str(result.n),
        f"{result.p:.2g}",
        str(result.layer),
        f"{result.fraction:.0%}",
        f"{_counts(result.base_answers)} → {_counts(result.pruned_answers)}",
    )


def _counts(numbers: Sequence[int]) -> str:
    return ":".join(map(str, numbers))


def as_markdown(results: Sequence[Result]) -> str:
    """The table for a Prefect artifact or a page."""
    lines = [HEADER, ("---",) * len(HEADER), *map(row, results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_table(results: Sequence[Result]) -> "Table":
    """The table for a terminal."""
    from rich.table import Table

    table = Table(
        title="Accuracy on the test split",
        caption="± standard error; random: same layer and number of neurons, mean over seeds; "
        "p: exact McNemar test, pruned against base; answers: how often each option was predicted, base → pruned",
    )
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("model", "benchmark") else "right", overflow="fold")
    for result in results:
        table.add_row(*row(result))
    return table
