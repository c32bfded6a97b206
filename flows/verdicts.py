"""The table of `dsm evaluate`."""

from typing import Any

from flows.tables import Column, FittingTable
from tasks.evidence.verdict import signed

SHOWN = {"accuracy": "accuracy", "exact_match": "exact match", "acc_norm": "acc_norm"}


def comparison_table(comparison: dict[str, Any]) -> FittingTable:
    """Both models, and a row for the paired differences."""
    rows = [
        [system, *(f"{one[name]:.3f} ± {one[f'{name}_stderr']:.3f}" for name in SHOWN)]
        for system, one in comparison["systems"].items()
    ]
    if pairs := comparison.get("model_vs_base"):
        differences = (f"{signed(pairs[name]['difference'])} ± {pairs[name]['stderr']:.3f}" for name in SHOWN)
        rows.append(["difference", *differences])
        rows.append(["p", *(f"{pairs[name]['p']:.2g}" for name in SHOWN)])
    columns = [Column(""), *(Column(name, "right") for name in SHOWN.values())]
    return FittingTable(columns, rows, title=comparison["benchmark"], caption=caption(comparison))


def names(comparison: dict[str, Any]) -> list[str]:
    """What was compared, a line each: paths are too long for a table."""
    return [f"{name}: {comparison[name]}" for name in ("model", "base") if comparison.get(name)]


def caption(comparison: dict[str, Any]) -> str:
    """What the numbers mean."""
    rows = f"{comparison['n']} test rows; ± standard error"
    pairs = comparison.get("model_vs_base")
    if not pairs:
        return f"{rows}; no base: name one with --base to compare with it"
    low, high = map(signed, pairs["accuracy"]["interval"])
    return f"{rows}; p of the exact McNemar test; 95 % interval of the difference in accuracy {low} to {high}"
