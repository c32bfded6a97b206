"""Filters for the templates of benchmarks, in addition to those of Jinja."""

import hashlib
import json
import re
from typing import Any

from jinja2 import Undefined

from tasks.benchmarks.values import NotTextError, is_null, text_of


def shuffled(values: Any, key: Any, seed: int = 0) -> list[Any]:
    """The list, sorted by SHA-256 hashes of seed, key and value: `{{ choices | shuffled(question) }}`.

    The order is independent of the order in the file, where the right choice may always be the first. It is the same on
    every machine. Adding or removing a choice does not change the order of the others.

    Args:
        values: texts, or values that print as text. A null is also sorted, and refused when it is printed: a row with
            an empty choice is not a row without a label.
        key: a value that differs between rows, such as the question.

    Raises:
        NotTextError: `values` is not a list, or a value is not text.
    """

    def place(value: Any) -> bytes:
        content = [None if is_null(part) else text_of(part) for part in (key, value)]
        return hashlib.sha256(json.dumps(["shuffled", seed, *content]).encode("ascii")).digest()

    return sorted(_as_list(values, "shuffled"), key=place)


def without(value: Any, start: str, end: str) -> str:
    """The text without the marks and the text between them: `{{ text | without("[", "]") }}`.

    Each `start` is paired with the next `end` on the same line.

    Raises:
        NotTextError: the value is not text.
    """
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", "", text_of(value))


def around(values: Any, before: str, after: str) -> list[str]:
    """The list with a text before and after each value: `{{ answers | around(" ", "\\n") }}`.

    Raises:
        NotTextError: `values` is not a list, or a value is not text.
    """
    return [f"{before}{text_of(value)}{after}" for value in _as_list(values, "around")]


def _as_list(values: Any, name: str) -> list[Any]:
    if isinstance(values, Undefined):
        return list(values)  # raises the error that names the missing variable
    if not isinstance(values, list | tuple):
        kind = "null" if is_null(values) else f"a {type(values).__name__}"
        raise NotTextError(f"{name} takes a list, not {kind}")
    return list(values)


FILTERS = {"around": around, "shuffled": shuffled, "without": without}
