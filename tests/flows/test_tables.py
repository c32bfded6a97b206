"""Tables fit the terminal: columns that do not fit are left out and named, and only folded columns are broken."""

import io

import pytest
from rich.console import Console

from flows.tables import Column, FittingTable

COLUMNS = [
    Column("name", least=8),
    Column("n", "right"),
    Column("licence", optional=True),
    Column("from", optional=True),
]
ROWS = [["heading"], ["a long name", "12,345", "research use", "hub"], [], ["b", "1\n22", "x", "y"]]


def printed(width: int, **more: object) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(FittingTable(COLUMNS, ROWS, **more))  # type: ignore[arg-type]
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_all_is_shown_where_it_fits() -> None:
    assert printed(80, caption="n: rows.") == [
        "name              n  licence       from",
        "heading",
        "a long name  12,345  research use  hub",
        "",
        "b                 1  x             y",
        "                 22",
        "n: rows.",
    ]


@pytest.mark.parametrize(("width", "gone"), [(36, ["from"]), (24, ["licence", "from"])])
def test_the_last_optional_column_goes_first_and_is_named(width: int, gone: list[str]) -> None:
    lines = printed(width, caption=lambda names: f"shown: {', '.join(names)}.")
    assert max(map(len, lines)) <= width
    kept = [column.name for column in COLUMNS if column.name not in gone]
    assert lines[0].split() == kept
    text = " ".join(" ".join(lines).split())
    assert f"shown: {', '.join(kept)}. Too wide for this terminal: {', '.join(gone)}." in text
    assert any("12,345" in line for line in lines)


def test_a_folded_column_shrinks_to_its_least_width() -> None:
    lines = printed(18)
    assert [line.split()[0] for line in lines[2:4]] == ["a", "name"]
    assert lines[2].split()[-1] == "12,345"
