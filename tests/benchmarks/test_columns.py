"""Values that passed through JSON and a data frame equal those of the rows, or are refused."""

import datetime
import json
from typing import Any

import pandas as pd
import pytest

from tasks.benchmarks.columns import ABSENT, add_kinds, as_in_rows, as_sent, describe_kinds, kind


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        ("a", "text"),
        (True, "boolean"),
        (3, "integer"),
        (3.0, "number"),
        (["a", "b"], "list of texts"),
        ([1, 2], "list of integers"),
        ([1.0, 2.5], "list of numbers"),
        ([True], "list of booleans"),
        ([1, 2.5], "list"),
        ([], "list"),
        ([None], "list"),
        ([["a"]], "list"),
        ({"a": 1}, "object"),
        (datetime.date(2001, 1, 1), "text"),
    ],
)
def test_kinds(value: Any, expected: str) -> None:
    assert kind(value) == expected


ROWS: list[list[dict[str, Any]]] = [
    [{"a": 1}, {"a": 2}],
    [{"a": 1}, {"a": None}],
    [{"a": 1.0}, {"a": 2.5}],
    [{"a": 1.0}, {"a": None}],
    [{"a": True}, {"a": False}],
    [{"a": True}, {"a": None}],
    [{"a": "x"}, {"a": None}],
    [{"a": "x"}, {"a": "1"}],
    [{"a": "x"}, {"b": "y"}],
    [{"a": 1}, {"b": "y"}],
    [{"a": ["x", "y"]}, {"a": ["z"]}],
    [{"a": ["x"]}, {"a": None}],
    [{"a": ["x"]}, {"a": []}],
    [{"a": [1, 2.5]}, {"a": ["x", None]}],
    [{"a": {"b": 1, "c": ["x"]}}, {"a": {"b": None}}],
    [{"a": "x"}, {"a": 1}],
    [{"a": 2**60}, {"a": 1}],
]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("together", [True, False])
def test_a_value_comes_back_as_it_was(rows: list[dict[str, Any]], together: bool) -> None:
    kinds: dict[str, set[str]] = {}
    for row in rows:
        add_kinds(kinds, row, ["a", "b"])
    for batch in [rows] if together else [[row] for row in rows]:
        frame = pd.DataFrame(json.loads(json.dumps(batch)))
        columns = [str(column) for column in frame]
        for row, values in zip(batch, frame.itertuples(index=False), strict=True):
            sent = dict(zip(columns, values, strict=True))
            back = {name: as_in_rows(value, kinds[name]) for name, value in sent.items()}
            back = {name: value for name, value in back.items() if value is not ABSENT}
            assert repr(sorted(back.items())) == repr(sorted(row.items()))


@pytest.mark.parametrize(
    ("value", "kinds", "problem"),
    [
        ("2001", {"integer"}, "must be an integer, not '2001'"),
        (2001.5, {"integer"}, "must be an integer, not 2001.5"),
        (True, {"integer"}, "must be an integer, not True"),
        ("['yes', 'no']", {"list of texts"}, "must be a list of texts, not \"['yes', 'no']\""),
        ([1, "a"], {"list of texts"}, "must be a list of texts, not [1, 'a']"),
        ("false", {"boolean", "null"}, "must be a boolean or null, not 'false'"),
        (None, {"text"}, "must be a text, not None"),
        (float("nan"), {"number", "absent", "null"}, None),
        (2.0**60, {"integer", "null"}, "must be an integer or null, not 1.15"),
        (3, {"number"}, None),
        ([1, 2], {"list of numbers"}, None),
        (["a"], {"list", "text"}, None),
    ],
)
def test_another_kind_is_refused(value: Any, kinds: set[str], problem: str | None) -> None:
    if problem is None:
        as_in_rows(value, kinds)
    else:
        with pytest.raises(ValueError, match="must be") as refused:
            as_in_rows(value, kinds)
        assert str(refused.value).startswith(problem)


def test_the_example_is_json() -> None:
    row = {"a": datetime.date(2001, 1, 1), "b": [1, {"c": None}], "d": "not asked for"}
    assert as_sent(row, {"a", "b", "e"}) == {"a": "2001-01-01", "b": [1, {"c": None}]}
    assert describe_kinds({"absent", "integer", "null"}) == "an integer or null"
