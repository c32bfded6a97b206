"""The types of a prompt's columns. A served model checks its inputs by them, so that they render as the rows did."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.runtime.errors import InputError

Kinds = dict[str, set[str]]  # column -> "text", "integer", "list of texts", ..

ABSENT, NULL = "absent", "null"
LARGEST = 2**53  # not every larger integer is a float


def kind(value: Any) -> str:
    """The kind of a value. A type that JSON does not have, such as a date, is sent as its text."""
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
        simple = len(kinds) == 1 and kinds < {"text", "integer", "number", "boolean"}
        return f"list of {kinds.pop()}s" if simple else "list"
    return "text"


def add_kinds(kinds: Kinds, row: Mapping[str, Any], names: Iterable[str]) -> None:
    """Adds the kinds of one row's values to `kinds`."""
    for name in names:
        kinds.setdefault(name, set()).add(kind(row[name]) if name in row else ABSENT)


def as_in_rows(value: Any, kinds: Iterable[str]) -> Any:
    """Converts a value that came through JSON and a data frame to one of these kinds; ABSENT if the column is missing.

    In a column with 4.5 or null a data frame turns 3 into 3.0, and null into NaN.

    Raises:
        ValueError: the value has another kind.
    """
    if isinstance(value, float) and math.isnan(value):
        value = None
    actual = kind(value)
    if actual in kinds or (isinstance(value, list) and "list" in kinds):
        return value
    if value is None and ABSENT in kinds:
        return ABSENT
    if actual == "number" and "integer" in kinds and value.is_integer() and abs(value) < LARGEST:
        return int(value)
    if actual == "integer" and "number" in kinds:
        return float(value)
    if actual == "list of integers" and "list of numbers" in kinds:
        return [float(one) for one in value]
    raise ValueError(f"must be {describe_kinds(kinds)}, not {value!r:.60}")


def describe_kinds(kinds: Iterable[str]) -> str:
    """The kinds in words.

    Example:
        >>> describe_kinds({"integer", "null"})
        'an integer or null'
    """
    words = [
        one if one == NULL else f"{'an' if one[0] in 'aeiou' else 'a'} {one}" for one in sorted(set(kinds) - {ABSENT})
    ]
    return " or ".join(words)


def as_sent(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The row as a JSON value."""
    return {name: _plain(row[name]) for name in sorted(names) if name in row}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):  # from Parquet; bytes that are not text were refused
        return value.decode()
    return str(value) if kind(value) == "text" else value


def check_kinds(name: str, number: int, value: Any, kinds: Iterable[str]) -> Any:
    """`as_in_rows` for one column of the row `number` of a request.

    Raises:
        InputError: the value has another kind.
    """
    try:
        return as_in_rows(value, kinds)
    except ValueError as error:
        raise InputError(f"row {number}", f"{name} {error}") from None
