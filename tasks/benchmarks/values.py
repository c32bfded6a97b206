"""Values of rows as text, for prompts, options, labels, groups and `where`.

Text, numbers, booleans and dates print as in Python. Bytes are UTF-8 text. A null (NaN in a float column of pandas) is
never text; neither are infinity, other bytes, lists and mappings.
"""

import datetime
import decimal
import math
import re
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Undefined

_PRINTED = (
    str, bool, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, np.generic,
)  # fmt: skip


class NotTextError(Exception):
    """A value that cannot become text. Not a ValueError, which filters such as `int` catch."""


class NullError(NotTextError):
    """A null that cannot become text."""


class Null:
    """A null in templates. It equals `none` and is false, but conversion to text or a number fails.

    With a plain None, `" " ~ none` would be " None", and `none | int` would be 0.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def _fail(self, *_: Any) -> Any:
        raise NullError(f"{_shown(self._name)} is empty (null)")

    __str__ = __format__ = __int__ = __float__ = _fail

    def __repr__(self) -> str:
        return "null"

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    def __hash__(self) -> int:
        return hash(None)


def _shown(name: str) -> str:
    """The name of a column for an error of one line."""
    return name if name.isprintable() and name.strip() else repr(name)


def is_null(value: Any) -> bool:
    """Whether a value is None, NaN or another null of pandas."""
    return isinstance(value, Null) or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def readable(value: Any, name: str) -> Any:
    """The value for a template: nulls as `Null`, bytes as text, NumPy arrays as lists, also nested.

    Args:
        name: the column and the position in it, for messages.

    Raises:
        NotTextError: bytes are not UTF-8.
    """
    if isinstance(value, str | bool | int | Null):
        return value
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise NotTextError(f"{_shown(name)} holds bytes that are not UTF-8 text") from None
    if isinstance(value, Mapping):
        return {key: readable(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [readable(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
    return Null(name) if is_null(value) else value


def text_of(value: Any, name: str = "the value") -> str:
    """The value as text.

    Raises:
        NullError: the value is null.
        NotTextError: the value is infinite, or a list, a mapping or another object that is not text.

    Example:
        >>> text_of(2.5), text_of(b"warm")
        ('2.5', 'warm')
    """
    if isinstance(value, Undefined):
        return str(value)  # raises the error that names the missing variable
    value = readable(value, name)
    if isinstance(value, Null):
        return str(value)
    if not isinstance(value, _PRINTED):
        raise NotTextError(f"{_shown(name)} is a {type(value).__name__}, not text; a part of it may be text")
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        raise NotTextError(f"{_shown(name)} is an infinite number")
    return str(value)


def compared(text: str) -> str:
    """The text for comparisons of labels, groups and `where`: 1.0 becomes 1, since nulls turn integers into floats."""
    return re.sub(r"(-?[0-9]+)\.0+", r"\1", text) if re.fullmatch(r"-?[0-9]+\.0+", text) else text
