"""The table of `dsm evaluate`."""

from typing import TYPE_CHECKING, Any

from flows.results import GAP, signed

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = {"accuracy": "accuracy", "exact_match": "exact match", "acc_norm": "acc_norm"}


def comparison_table(comparison: dict[str, Any]) -> "Table":
    """Both models, and a row for the paired differences; no number is broken on a terminal of 60 columns or more."""
    from rich.table import Table

    table = Table(
        title=f"{comparison['model']} on {comparison['benchmark']}", caption=caption(comparison),
        caption_justify="left", box=None, pad_edge=False, padding=(0, GAP, 0, 0),
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    for name in SHOWN.values():
        table.add_column(name, justify="right", no_wrap=True)
    for system, one in comparison["systems"].items():
        table.add_row(system, *(f"{one[name]:.3f} ± {one[f'{name}_stderr']:.3f}" for name in SHOWN))
    if pairs := comparison.get("model_vs_base"):
        differences = (f"{signed(pairs[name]['difference'])} ± {pairs[name]['stderr']:.3f}" for name in SHOWN)
        table.add_row("difference", *differences)
        table.add_row("p", *(f"{pairs[name]['p']:.2g}" for name in SHOWN))
    return table


def caption(comparison: dict[str, Any]) -> str:
    """What the numbers mean."""
    rows = f"{comparison['n']} test rows; ± standard error"
    pairs = comparison.get("model_vs_base")
    if not pairs:
        return f"{rows}; no base: name one with --base to have it beside"
    low, high = map(signed, pairs["accuracy"]["interval"])
    return (
        f"{rows}; p of the exact McNemar test; 95 % interval of the difference in accuracy {low} to {high}; "
        f"base: {comparison['base']}"
    )
