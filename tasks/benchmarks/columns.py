"""The kinds of values that a prompt's columns have: what a served model is sent must render as the rows did."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.runtime.errors import InputError

Kinds = dict[str, set[str]]  # column -> "text", "integer", "list of texts", ..

ABSENT, NULL = "absent", "null"
LARGEST = 2**53  # beyond it not every integer is a float


def kind(value: Any) -> str:
    """The kind of a row's value. What JSON does not have (a date of a Parquet file) is sent as the text it prints."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, dict):
        return "object"
    if isinstance(value, list):
        kinds = {kind(one) for one in value}
        return (
            f"list of {kinds.pop()}s"
            if len(kinds) == 1 and kinds < {"text", "integer", "number", "boolean"}
            else "list"
        )
    return "text"


def add_kinds(found: Kinds, row: Mapping[str, Any], names: Iterable[str]) -> None:
    """Adds the kinds of one row's values to those found so far."""
    for name in names:
        found.setdefault(name, set()).add(kind(row[name]) if name in row else ABSENT)


def as_in_rows(value: Any, kinds: Iterable[str]) -> Any:
    """A value of one of these kinds, of one that came through JSON and a data frame; ABSENT: the row lacks the column.

    A data frame makes 3 in a column with 4.5 or null into 3.0, and null into NaN.

    Raises:
        ValueError: it is of another kind.
    """
    if isinstance(value, float) and math.isnan(value):
        value = None
    found = kind(value)
    if found in kinds or (isinstance(value, list) and "list" in kinds):
        return value
    if value is None and ABSENT in kinds:
        return ABSENT
    if found == "number" and "integer" in kinds and value.is_integer() and abs(value) < LARGEST:
        return int(value)
    if found == "integer" and "number" in kinds:
        return float(value)
    if found == "list of integers" and "list of numbers" in kinds:
        return [float(one) for one in value]
    raise ValueError(f"must be {told(kinds)}, not {value!r:.60}")


def told(kinds: Iterable[str]) -> str:
    """The kinds in words, such as "an integer or null"."""
    words = [
        one if one == NULL else f"{'an' if one[0] in 'aeiou' else 'a'} {one}" for one in sorted(set(kinds) - {ABSENT})
    ]
    return " or ".join(words)


def as_sent(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The row as it is sent as JSON."""
    return {name: _plain(row[name]) for name in sorted(names) if name in row}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):  # of a Parquet file; examples with other bytes than text are refused
        return value.decode()
    return str(value) if kind(value) == "text" else value


def check_kinds(name: str, number: int, value: Any, kinds: Iterable[str]) -> Any:
    """`as_in_rows` of the column of one row that was sent.

    Raises:
        InputError: it is of another kind.
    """
    try:
        return as_in_rows(value, kinds)
    except ValueError as error:
        raise InputError(f"row {number}", f"{name} {error}") from None
