"""report: all results of a cell in one HTML file, readable offline."""

from tasks.evidence.cell_report import render
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.files import write_text


def report(cell: Cell) -> None:
    """Writes report.html from the cell's other files.

    Raises:
        InputError: one of them does not exist.
    """
    write_text(cell.report, render(cell))


if __name__ == "__main__":
    run_step(report, description=__doc__)
