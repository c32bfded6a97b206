"""What the commands of `dsm` share: how a cell is named, and how a table is printed."""

from typing import Annotated, Any

import typer

Model = Annotated[
    str | None,
    typer.Option(help="A name under models in params.yaml; default: that of the first cell with this benchmark."),
]
Benchmark = Annotated[
    str | None,
    typer.Option(help="A name under benchmarks in params.yaml; default: that of the first cell with this model."),
]

Runnable = Annotated[
    str | None,
    typer.Option(
        help="A name under benchmarks in params.yaml, or one of the library (`dsm benchmarks ls`), which is added "
        "there; default: that of the first cell with this model."
    ),
]
Data = Annotated[str | None, typer.Option(help="A directory with the files of the library's benchmarks.")]


def print_table(table: Any) -> None:
    """Prints a rich table; a pipe or a log file gets it unwrapped."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
