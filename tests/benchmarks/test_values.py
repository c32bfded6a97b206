"""Values of rows as text: nulls, bytes, numbers and nested values in every place that converts them to text."""

import datetime
import decimal
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.benchmarks.row_files import read_rows
from tasks.benchmarks.rows import examples, select
from tasks.benchmarks.templates import compile_template
from tasks.benchmarks.values import NotTextError, NullError, compared, text_of
from tasks.runtime.errors import InputError

FIELD = "benchmarks.b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        ("\u044f".encode(), "\u044f"),
        (True, "True"),
        (7, "7"),
        (1.0, "1.0"),
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.bool_(True), "True"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
    ],
)
def test_text_of(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize("value", [None, math.nan, np.float32("nan"), pd.NaT, pd.NA, decimal.Decimal("NaN")])
def test_a_null_is_never_text(value):
    with pytest.raises(NullError, match=r"^a is empty \(null\)$"):
        text_of(value, "a")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"\xff", "a holds bytes that are not UTF-8 text"),
        (math.inf, "a is an infinite number"),
        (["x"], "a is a list, not text"),
        (np.array(["x"]), "a is a list, not text"),
        ({"x": 1}, "a is a dict, not text"),
        ("x".upper, "a is a builtin_function_or_method, not text"),
    ],
)
def test_what_else_is_not_text(value, problem):
    with pytest.raises(NotTextError) as caught:
        text_of(value, "a")
    assert str(caught.value).startswith(problem)


def test_whole_numbers_are_compared_without_their_point():
    assert [compared(text) for text in ("1.0", "-1.00", "1", "1.5", "1.0a", "v1.0", "1.")] == [
        *("1", "-1", "1", "1.5", "1.0a", "v1.0", "1."),
    ]


# -- in templates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{{ a }}", "x{{ ' ' ~ a }}", "{{ a | int }}", "{{ a | float }}", "{{ a | string }}", "{{ a | upper }}",
        "{{ a | trim }}", "{{ a | replace('', ' ', 1) }}", "{{ '%s' % a }}", "{{ '{}'.format(a) }}",
        "{{ [a] | join }}", "{{ [a] | map('upper') | list }}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("null", [None, math.nan])
def test_no_filter_makes_text_or_a_number_of_a_null(template, null):
    with pytest.raises(InputError) as caught:
        compile_template(template, field="prompt")({"a": null}, 7)
    assert str(caught.value) == "prompt: row 7: a is empty (null)"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ a or 'no' }}", "no"),
        ("{{ a is none }} {{ a == none }} {{ a is defined }}", "True True True"),
        ("{% if a %}x{% endif %}.", "."),
        ("{{ a | default('no', true) }}", "no"),
        ("{{ b | reject('none') | join(',') }}", "x,y"),
        ("{{ b | select | join(',') }}", "x,y"),
        ("{{ c.d }}", "text"),
    ],
)
def test_a_template_can_ask_for_a_null(template, text):
    assert (
        compile_template(template, field="prompt")({"a": None, "b": ["x", None, "y"], "c": {"d": b"text"}}, 7) == text
    )


def test_a_null_inside_of_a_value_is_named():
    with pytest.raises(InputError) as caught:
        compile_template("{{ a.b[1] }}", field="prompt")({"a": {"b": ["x", None]}}, 7)
    assert str(caught.value) == "prompt: row 7: a.b[1] is empty (null)"


# -- in every place of a benchmark ------------------------------------------------------------------------------------


def spec(**changes):
    source = {"kind": "path", "path": "train.parquet", "sha256": "0" * 64}
    train = {"source": source, "gold": changes.pop("gold", "{{ label }}")}
    train |= {name: changes.pop(name) for name in ("where", "fields") if name in changes}
    fixed = {
        "prompt": "{{ text }}",
        "options": [" no", " yes"],
        "test": {"split": 1},
        "limits": {"test": 1, "transfer": 0},
    }
    return BenchmarkSpec(**fixed | {"train": train} | changes)


def found(rows, **changes):
    return examples(rows, spec(**changes), "train", field=FIELD)


def through_parquet(tmp_path, table):
    pq.write_table(table, tmp_path / "a.parquet")
    return read_rows(tmp_path / "a.parquet", name="a", field=FIELD)


ROW = {"text": "a", "label": 0, "of": ["x", "y"]}


@pytest.mark.parametrize(
    ("row", "changes", "line"),
    [
        ({"of": ["x", None, "y"]}, {"options": "{{ of }}"}, "options: row 2: of[1] is empty (null)"),
        ({"of": ["x", "y", None]}, {"options": "{{ of }}"}, "options: row 2: of[2] is empty (null)"),
        ({"of": [1.5, math.nan]}, {"options": "{{ of }}"}, "options: row 2: of[1] is empty (null)"),
        ({"of": None}, {"options": "{{ of }}"}, "options: row 2: of is empty (null)"),
        ({"of": [b"x", b"\xff"]}, {"options": "{{ of }}"}, "options: row 2: of[1] holds bytes that are not UTF-8"),
        ({"of": [["x"], "y"]}, {"options": "{{ of }}"}, "options: row 2: number 1 of the list is a list, not text"),
        ({"of": [{"t": "x"}, "y"]}, {"options": "{{ of }}"}, "options: row 2: number 1 of the list is a dict"),
        ({"of": [math.inf, 1.0]}, {"options": "{{ of }}"}, "options: row 2: number 1 of the list is an infinite"),
        (
            {"of": ["x", None]},
            {"options": "{{ of | map('replace', '', ' ', 1) | list }}"},
            "options: row 2: of[1] is empty (null)",
        ),
        ({"of": ["x", None]}, {"options": ["{{ of[0] }}", "{{ of[1] }}"]}, "options.1: row 2: of[1] is empty (null)"),
        ({"of": ["0", None]}, {"labels": "{{ of }}"}, "labels: row 2: of[1] is empty (null)"),
        ({"of": ["0", "0"]}, {"labels": "{{ of }}"}, "train.gold: row 2: the label '0' occurs 2 times in ['0', '0']"),
        ({"text": None}, {}, "prompt: row 2: text is empty (null)"),
        ({"text": math.nan}, {}, "prompt: row 2: text is empty (null)"),
        ({"text": math.inf}, {}, "prompt: row 2: the value is an infinite number"),
        ({"text": b"\xff"}, {}, "prompt: row 2: text holds bytes that are not UTF-8 text"),
        ({"text": ["a"]}, {}, "prompt: row 2: the value is a list, not text"),
        ({"text": None}, {"fields": {"text": "{{ text }}"}}, "train.fields.text: row 2: text is empty (null)"),
        ({"text": None}, {"group": "{{ text }}", "prompt": "?"}, "group: row 2: text is empty (null)"),
        ({"text": {"a": 1}}, {"group": "{{ text }}", "prompt": "?"}, "group: row 2: the value is a dict, not text"),
        ({"text": ["a"]}, {"where": {"text": ["a"]}}, "train.where.text: row 2: text is a list, not text"),
        ({"text": b"\xff"}, {"where": {"text": ["a"]}}, "train.where.text: row 2: text holds bytes that are not"),
        ({"label": math.inf}, {}, "train.gold: row 2: the value is an infinite number"),
        ({"label": [0]}, {}, "train.gold: row 2: the value is a list, not text"),
        ({"label": b"\xff"}, {}, "train.gold: row 2: label holds bytes that are not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_text_names_row_and_column(row, changes, line):
    labelled = {"of": ["0", "1"]} if "labels" in changes else {}
    with pytest.raises(InputError) as caught:
        found([ROW | labelled, ROW | row], **changes)
    assert str(caught.value).startswith(f"{FIELD}.{line}")
    assert "\n" not in str(caught.value)


def test_bytes_of_a_parquet_file_are_text(tmp_path):
    table = pa.table(
        {"text": pa.array([b"a \xc3\xa9", b"b"]), "label": pa.array([b"1", b"0"]), "of": pa.array([[b"x", b"y"]] * 2)}
    )
    rows = through_parquet(tmp_path, table)
    made = found(rows, options="{{ of }}", group="{{ text }}", where={"label": [0, 1]}).examples
    assert [(one.prompt, one.gold, one.options, one.group) for one in made] == [
        ("a \u00e9", 1, ("x", "y"), "a \u00e9"),
        ("b", 0, ("x", "y"), "b"),
    ]


# -- rows without a label ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gold",
    [
        "{{ label }}", "{{ label | int }}", "{{ label == 1 | int }}", "{{ ['0', '1'].index(label | string) }}",
        '{{ row["label"] }}', "{{ '01'.index(label | string) }}", "{{ label | default(0) }}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("nothing", [{"label": None}, {"label": math.nan}, {"label": ""}, {}])
def test_rows_without_a_label_are_counted_whatever_the_template(gold, nothing):
    changes = {"labels": ["False", "True"]} if "==" in gold else {}
    rows = [{"text": "a", "label": 1}, {"text": "b"} | nothing, {"text": "c", "label": 0}]
    made = found(rows, gold=gold, **changes)
    assert [example.number for example in made.examples] == [1, 3]
    assert [example.gold for example in made.examples] == [1, 0]
    assert made.left_out["without a label"] == 1


@pytest.mark.parametrize("gold", ["{{ answer.label }}", "{{ answer.label | int }}"])
def test_a_label_inside_of_a_column_may_be_null(gold):
    rows = [{"text": "a", "answer": {"label": 1}}, {"text": "b", "answer": {"label": None}}]
    assert [example.gold for example in found(rows, gold=gold).examples] == [1]


def test_a_row_without_a_label_may_lack_the_rest_too():
    rows = [ROW, {"text": None, "label": None, "of": None}]
    assert found(rows, options="{{ of }}").left_out["without a label"] == 1


def test_a_column_that_no_row_has_is_a_mistake():
    with pytest.raises(InputError, match=r"train\.gold: row 1: 'labl' is undefined; the row has"):
        found([ROW], gold="{{ labl }}")


def test_integers_beside_nulls_that_pandas_wrote(tmp_path):
    frame = pd.DataFrame({"text": list("abcd"), "label": [1, None, 0, -1], "who": [7, 8, 7, 9]})
    assert frame["label"].dtype == float
    for ending in ("parquet", "csv"):
        getattr(frame, f"to_{ending}")(tmp_path / f"a.{ending}", index=False)
        rows = read_rows(tmp_path / f"a.{ending}", name="a", field=FIELD)
        made = found(rows)
        assert [example.gold for example in made.examples] == [1, 0]
        assert made.left_out["without a label"] == 2
        assert [number for number, _ in select(rows, {"label": [1]}, field=FIELD)] == [1]


def test_labels_may_be_floats_themselves():
    assert found([{"text": "a", "label": 2.0}], labels=["1.0", "2.0"]).examples[0].gold == 1
    assert found([{"text": "a", "label": 2}], labels=["1.0", "2.0"]).examples[0].gold == 1
    assert found([{"text": "a", "label": "1.0"}], labels=["1", "1.0"]).examples[0].gold == 1


def test_a_group_is_the_same_as_integer_and_as_float():
    groups = [found([ROW | {"who": who}], group="{{ who }}").examples[0].group for who in (7, 7.0, "7")]
    assert groups == ["7"] * 3


def test_where_leaves_nulls_out():
    rows = [{"a": None}, {"a": math.nan}, {"a": "None"}, {"a": 1.0}, {"a": "1.0"}, {"a": b"1"}]
    assert [number for number, _ in select(rows, {"a": ["None", "nan"]}, field=FIELD)] == [3]
    assert [number for number, _ in select(rows, {"a": [1]}, field=FIELD)] == [4, 5, 6]
    assert [number for number, _ in select(rows, {"a": [1.0]}, field=FIELD)] == [4, 5, 6]
