"""params.yaml: the real one is valid, and every mistake is one line that names the field."""

import datetime
from pathlib import Path

import pytest
import yaml

from tasks.benchmarks.benchmark_spec import HeldOut
from tasks.pipeline.cell import open_cell
from tasks.pipeline.settings import load_settings, parse_settings
from tasks.runtime.errors import InputError
from tests.cells import settings

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(change, match):
    """Changes a valid params.yaml and checks the resulting error line."""
    params = settings()
    change(params)
    with pytest.raises(InputError) as caught:
        parse_settings(yaml.safe_dump(params))
    line = str(caught.value)
    assert "\n" not in line
    assert match in line


def test_the_real_file_is_valid():
    parsed = load_settings(ROOT)
    assert isinstance(parsed.benchmarks["rotten_tomatoes"].test, HeldOut)
    assert parsed.benchmarks["boolq"].train.where == {"label": [True, False]}
    assert parsed.pipeline.models[0] in parsed.models


@pytest.mark.parametrize("split", [30, 0.25])
def test_a_test_split_is_a_count_or_a_fraction(split):
    params = settings()
    params["benchmarks"]["reviews"]["test"]["split"] = split
    held = parse_settings(yaml.safe_dump(params)).benchmarks["reviews"].test
    assert (type(held.split), held.split) == (type(split), split)


def source(kind, **fields):
    def change(params):
        params["models"]["tiny"]["source"] = {"kind": kind, **fields}

    return change


def put(value, *path):
    def change(params):
        for key in path[:-1]:
            params = params[key]
        params[path[-1]] = value

    return change


PART = {"package": "p", "version": "1", "file": "f"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put(0, "adaptation", "size"), "adaptation.size: Input should be greater than 0, not 0"),
        (
            put("lucky", "adaptation", "selection"),
            "adaptation.selection: Input should be 'random', 'correct' or 'wrong'",
        ),
        (put(1, "adaptation", "sizes"), "adaptation.sizes: Extra inputs are not permitted"),
        (put([0.5, 1.0], "search", "fractions"), "search.fractions.1: Input should be less than 1, not 1.0"),
        (put([0.0], "search", "fractions"), "search.fractions.0: Input should be greater than 0"),
        (put([0.2, 0.1], "search", "fractions"), "search.fractions: must be ascending"),
        (put([], "search", "fractions"), "search.fractions: List should have at least 1 item"),
        (put("trapezoid", "attribution", "quadrature"), "attribution.quadrature: "),
        (put([], "evaluation", "control_seeds"), "evaluation.control_seeds: "),
        (put([0, 0], "evaluation", "control_seeds"), "evaluation.control_seeds: holds a seed twice"),
        (put([-1], "evaluation", "control_seeds"), "evaluation.control_seeds.0: Input should be greater than or equal"),
        (put(-1, "adaptation", "seed"), "adaptation.seed: Input should be greater than or equal to 0, not -1"),
        (
            put("bfloat16", "models", "tiny", "source", "dtype"),
            "models.tiny.source: dtype: is for GGUF files; the weights of others stay in the type they have",
        ),
        (
            put("float16", "models", "tiny", "source", "dtype"),
            "models.tiny.source.dtype: Input should be 'float32' or 'bfloat16'",
        ),
        (
            put("bfloat16", "benchmarks", "reviews", "train", "source", "dtype"),
            "benchmarks.reviews.train.source: dtype: is for models",
        ),
        (put(["huge"], "pipeline", "models"), "pipeline.models: 'huge' is not declared; choose from ['tiny']"),
        (put(["sst"], "pipeline", "benchmarks"), "pipeline.benchmarks: 'sst' is not declared; choose from ['reviews']"),
        (put(["tiny", "tiny"], "pipeline", "models"), "pipeline.models: 'tiny' occurs twice"),
        (put([], "pipeline", "benchmarks"), "pipeline.cells.tiny-reviews: 'reviews' is not in pipeline.benchmarks"),
        (put({"model": "tiny", "benchmark": "reviews"}, "pipeline", "cells", "t"), "must be named 'tiny-reviews'"),
        (put({"model": "tiny"}, "pipeline", "cells", "t"), "pipeline.cells.t.benchmark: Field required"),
        (put(["tiny-reviews"], "pipeline", "cells"), "pipeline.cells: Input should be a valid dictionary"),
        (source("ftp"), "models.tiny.source: "),
        (source("wheel", package="p", version="1"), "models.tiny.source.file: Field required"),
        (source("wheels", file="a.gguf", parts=[], sha256="0" * 64), "models.tiny.source.parts: "),
        (source("wheels", file="a/b.gguf", parts=[PART], sha256="0" * 64), "models.tiny.source.file: "),
        (source("wheels", file="a.gguf", parts=[PART | {"version": "x"}], sha256="0" * 64), "source.parts.0.version: "),
        (source("wheel", package="-r x", version="1", file="f", sha256="0" * 64), "models.tiny.source.package: "),
        (source("wheel", package="p", version="1.*", file="f", sha256="0" * 64), "models.tiny.source.version: "),
        (source("path", sha256="0" * 64), "models.tiny.source.path: Field required"),
        (source("path", path="x", sha256="ABC"), "models.tiny.source.sha256: String should match pattern"),
        (source("hub", id="a/b", revision="main"), "models.tiny.source.revision: must be a commit of 40 hexadecimal"),
        (put([" a"], "benchmarks", "reviews", "options"), "benchmarks.reviews.options: "),
        (put([" a", " a"], "benchmarks", "reviews", "options"), "options holds a value twice"),
        (put([" a", " "], "benchmarks", "reviews", "options"), "options holds an empty option"),
        (put(["0"], "benchmarks", "reviews", "labels"), "labels has 1 values for 2 options"),
        (put("text", "benchmarks", "reviews", "train", "fields"), "benchmarks.reviews.train.fields: "),
        (put([" a", 1], "benchmarks", "reviews", "options"), "benchmarks.reviews.options.1: "),
        (put({}, "benchmarks", "reviews", "labels"), "benchmarks.reviews.labels: "),
        (put("yes please", "benchmarks", "reviews", "chat_template"), "benchmarks.reviews.chat_template: "),
        (put("yesterday", "benchmarks", "reviews", "date"), "benchmarks.reviews.date: must be a date such as"),
        (put("2024-02-30", "benchmarks", "reviews", "date"), "benchmarks.reviews.date: must be a date such as"),
        (put(20240726, "benchmarks", "reviews", "date"), "benchmarks.reviews.date: must be a date such as"),
        (put(datetime.date(2025, 2, 3), "benchmarks", "reviews", "date"), 'must be in quotes, "2025-02-03": DVC'),
        (put("2025-02-03", "benchmarks", "reviews", "date"), "reviews: date is for a chat template, but chat_template"),
        (
            put(
                {"source": {"kind": "local", "paths": ["a.jsonl"]}, "gold": "{{ label }}"},
                "benchmarks",
                "reviews",
                "test",
            ),
            "benchmarks.reviews: train and test must both have fields, or neither",
        ),
        (put(0, "benchmarks", "reviews", "limits", "test"), "benchmarks.reviews.limits.test: "),
        (put(0, "benchmarks", "reviews", "test", "split"), "benchmarks.reviews.test.split: "),
        *(
            (
                put(split, "benchmarks", "reviews", "test", "split"),
                f"benchmarks.reviews.test.split: Input should be {told}",
            )
            for split, told in (
                (1.0, "less than 1, not 1.0"),
                (0.0, "greater than 0, not 0.0"),
                (-2, "greater than 0, not -2"),
                ("half", "a valid integer, unable to parse string as an integer, not 'half'"),
            )
        ),
        (put("half", "benchmarks", "reviews", "test"), "benchmarks.reviews.test: "),
        (
            put({"gold": "{{ label }}"}, "benchmarks", "reviews", "test"),
            "benchmarks.reviews.test.source: Field required",
        ),
        (lambda params: params["models"].update({"a b": params["models"]["tiny"]}), "a name has letters, digits"),
        (lambda params: params.pop("search"), "search: Field required"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(change, match):
    refused(change, match)


def test_no_cell_at_all_is_valid():
    params = settings() | {"pipeline": {"models": [], "benchmarks": [], "cells": {}}}
    assert parse_settings(yaml.safe_dump(params)).pipeline.chosen(None, None) == []


def test_without_a_list_every_model_on_every_benchmark_is_a_cell():
    params = settings()
    del params["pipeline"]["cells"]
    params["benchmarks"]["other"] = params["benchmarks"]["reviews"]
    params["pipeline"]["benchmarks"].append("other")
    assert list(parse_settings(yaml.safe_dump(params)).pipeline.cells) == ["tiny-reviews", "tiny-other"]


def test_a_hub_source_takes_a_commit():
    params = settings()
    source("hub", id="a/b", revision=COMMIT)(params)
    assert parse_settings(yaml.safe_dump(params)).models["tiny"].source.revision == COMMIT


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [1\nb: 2", "params.yaml: not valid YAML at line 2"),
        ("- 1", "params.yaml: must hold a mapping"),
        ("", "params.yaml: must hold a mapping"),
    ],
)
def test_a_file_that_is_no_mapping(text, match):
    with pytest.raises(InputError, match=match):
        parse_settings(text)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"params.yaml: not found in .*; run from the project's directory"):
        load_settings(tmp_path)


def test_not_text(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"params.yaml: not UTF-8 text"):
        load_settings(tmp_path)


def test_a_dot_in_a_name_is_an_underscore_in_the_file(tmp_path):
    refused(
        lambda params: params["models"].update({"qwen2.5": params["models"]["tiny"]}),
        "models.qwen2.5: DVC would read what follows a dot as a field; write qwen2_5 (commands take either)",
    )
    params = settings()
    params["models"]["qwen2_5"] = params["models"]["tiny"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert open_cell("qwen2.5", "reviews", tmp_path) == open_cell("qwen2_5", "reviews", tmp_path)
    assert open_cell("qwen2.5", "reviews", tmp_path).model == "qwen2_5"
