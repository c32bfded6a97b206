"""The table of `dsm evaluate`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = {"accuracy": "accuracy", "exact_match": "exact match", "acc_norm": "acc_norm"}


def comparison_table(found: dict[str, Any]) -> "Table":
    """Both models, and a row for the paired differences; within 80 columns."""
    from rich.table import Table

    table = Table(title=f"{found['model']} on {found['benchmark']}", caption=caption(found))
    table.add_column("")
    for name in SHOWN.values():
        table.add_column(name, justify="right")
    for system, one in found["systems"].items():
        table.add_row(system, *(f"{one[name]:.3f} ± {one[f'{name}_stderr']:.3f}" for name in SHOWN))
    if pairs := found.get("model_vs_base"):
        table.add_section()
        signed = (f"{pairs[name]['difference']:+.3f} ± {pairs[name]['stderr']:.3f}" for name in SHOWN)
        table.add_row("difference", *signed)
        table.add_row("exact McNemar p", *(f"{pairs[name]['p']:.2g}" for name in SHOWN))
    return table


def caption(found: dict[str, Any]) -> str:
    """What the numbers are of."""
    rows = f"{found['n']} test rows; ± standard error"
    pairs = found.get("model_vs_base")
    if not pairs:
        return f"{rows}; no base: name one with --base to have it beside"
    low, high = pairs["accuracy"]["interval"]
    return f"{rows}; 95 % interval of the difference in accuracy {low:+.3f} to {high:+.3f}; base: {found['base']}"
