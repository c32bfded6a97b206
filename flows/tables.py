"""Tables for a terminal: no borders, no broken numbers or names, and no more columns than fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

GAP = 2  # characters between columns


@dataclass(frozen=True)
class Column:
    """A column of a `FittingTable`.

    Attributes:
        optional: the column is left out if the table is too wide; the last such column first.
        least: the width to which the column may shrink; longer texts are then wrapped. None: it never shrinks.
    """

    name: str
    justify: Literal["left", "right"] = "left"
    optional: bool = False
    least: int | None = None


class FittingTable:
    """A table that fits the width of the terminal.

    Args:
        rows: the cells of each row; a cell may have several lines. An empty row is a blank line, and a row of one cell
            is a heading.
        caption: the text below, or a function that makes it from the names of the columns that are shown. Names of
            columns that are left out follow it.

    Example:
        >>> table = FittingTable([Column("name"), Column("note", optional=True)], [["a", "x" * 99]])
        >>> console.print(table)  # doctest: +SKIP
    """

    def __init__(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        caption: str | Callable[[Sequence[str]], str] = "",
    ):
        self._columns, self._rows, self._title, self._caption = columns, rows, title, caption

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """The lines that rich prints."""
        from rich.table import Table

        width = {
            column.name: max(
                len(line)
                for text in [column.name, *(row[place] for row in self._rows if len(row) > 1)]
                for line in text.splitlines() or [""]
            )
            for place, column in enumerate(self._columns)
        }

        def taken(columns: Sequence[Column]) -> int:
            least = (min(width[column.name], column.least or width[column.name]) for column in columns)
            return sum(least) + GAP * len(columns)

        shown = list(self._columns)
        while taken(shown) > options.max_width and any(column.optional for column in shown):
            shown.remove([column for column in shown if column.optional][-1])
        names = [column.name for column in shown]
        caption = self._caption if isinstance(self._caption, str) else self._caption(names)
        if left_out := [column.name for column in self._columns if column not in shown]:
            caption = f"{caption} Too wide for this terminal: {', '.join(left_out)}.".strip()
        table = Table(
            title=self._title, caption=caption or None, caption_justify="left", box=None,
            pad_edge=False, padding=(0, GAP, 0, 0),
        )  # fmt: skip
        for column in shown:
            table.add_column(column.name, justify=column.justify, overflow="fold", no_wrap=column.least is None)
        places = [place for place, column in enumerate(self._columns) if column in shown]
        for row in self._rows:
            table.add_row(*(row[place] for place in places) if len(row) > 1 else row)
        yield table


def print_table(table: Any) -> None:
    """Prints a table; without a terminal (a pipe or a log file), lines are not wrapped."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
