"""Values of --model and --benchmark: a path, a hub id, a file of rows; each is pinned and gets a name."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.models.hashing import sha256_directory
from tasks.pipeline.settings import load_settings
from tasks.pipeline.wanted import hash_of_model, spec_of, wanted_benchmark, wanted_model
from tasks.runtime.errors import InputError
from tasks.runtime.files import sha256_file, write_text
from tests.cells import write_cell
from tests.tiny import save_tiny

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def root(tmp_path):
    write_cell(tmp_path)
    return tmp_path


def declare(root, section, **entries):
    import yaml

    params = yaml.safe_load((root / "params.yaml").read_text())
    params[section] |= entries
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def model(root, text, taken=()):
    return wanted_model(text, load_settings(root), root, taken)


def benchmark(root, text, **more):
    return wanted_benchmark(text, load_settings(root), root, **more)


def quiz(path, count=30, right=0):
    rows = [{"question": f"Is {i} odd?", "choices": ["no", "yes"], "answer": (i + right) % 2} for i in range(count)]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


# -- models -----------------------------------------------------------------------------------------------------------


def test_a_declared_name_goes_before_a_directory_of_that_name(root):
    save_tiny(root / "tiny")
    assert model(root, "tiny").entry is None
    assert model(root, "./tiny").entry is None  # its declared path is this directory: see settings() of tests.cells
    assert model(root, "./tiny").pins == {("source", "sha256"): sha256_directory(root / "tiny")}


def test_a_directory_is_pinned_by_its_hash(root):
    directory = save_tiny(root / "runs" / "My Model-3.1 (best)")
    wanted = model(root, "./runs/My Model-3.1 (best)/")
    assert wanted.name == "my-model-3_1-best"
    path = "runs/My Model-3.1 (best)"
    assert wanted.entry == {"source": {"kind": "path", "path": path, "sha256": sha256_directory(directory)}}
    assert model(root, str(directory)).entry["source"]["path"] == str(directory)
    declare(root, "models", mine=wanted.entry)
    again = model(root, str(directory))
    assert (again.name, again.entry, again.pins) == ("mine", None, {})
    save_tiny(directory, seed=1)
    moved = model(root, path)
    assert moved.pins == {("source", "sha256"): sha256_directory(directory)}
    assert moved.notes == (f"models.mine.source.sha256: now {sha256_directory(directory)}, since the file has changed",)


def test_a_declared_name_may_be_written_with_its_dots(root):
    wanted = model(root, str(save_tiny(root / "Tiny-3.1")))
    declare(root, "models", **{wanted.name: wanted.entry})
    assert (wanted.name, model(root, "tiny-3.1").name) == ("tiny-3_1", "tiny-3_1")


def test_two_directories_of_one_name_get_two(root):
    for parent in ("old", "new"):
        save_tiny(root / parent / "final")
    first = model(root, "old/final")
    second = model(root, "new/final", taken=[first.name])
    assert (first.name, second.name) == ("final", "new-final")


def test_a_gguf_file_is_pinned_by_its_hash_and_a_split_one_by_that_of_all_shards(root):
    import hashlib

    (root / "Tiny.Q4_K_M.gguf").write_bytes(b"one")
    wanted = model(root, "Tiny.Q4_K_M.gguf")
    assert wanted.name == "tiny_q4_k_m"
    assert wanted.entry["source"]["sha256"] == hashlib.sha256(b"one").hexdigest()
    for number, content in ((1, b"a"), (2, b"b")):
        (root / f"big-0000{number}-of-00002.gguf").write_bytes(content)
    split = model(root, "big-00001-of-00002.gguf")
    assert (split.name, split.entry["source"]["sha256"]) == ("big", hashlib.sha256(b"ab").hexdigest())
    with pytest.raises(InputError, match=r"is a shard of a split model; name the first one"):
        model(root, "big-00002-of-00002.gguf")
    (root / "big-00002-of-00002.gguf").unlink()
    with pytest.raises(InputError, match=r"is split, and the shard big-00002-of-00002.gguf is not beside it"):
        model(root, "big-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "huge",
            "models: 'huge' is not declared in params.yaml; choose from ['tiny']; it is not a directory, .gguf file or",
        ),
        ("../huge", "model: no such file or directory: ../huge"),
        ("huge.gguf", "model: no such file or directory: huge.gguf"),
        ("empty", "has no config.json"),
        ("params.yaml", "is not a model: a directory with safetensors or a .gguf file is needed"),
        ("pickles", "has no model.safetensors and no index of shards"),
    ],
)
def test_what_is_no_model_is_refused(root, text, problem):
    (root / "empty").mkdir()
    (root / "pickles").mkdir()
    (root / "pickles" / "config.json").write_text("{}")
    with pytest.raises(InputError) as refused:
        model(root, text)
    assert problem in str(refused.value)


@pytest.fixture
def hub(monkeypatch):
    """A fake of the hub's library with one model; records the requests."""
    asked = []

    def model_info(self, repository, revision=None):
        asked.append((repository, revision))
        if revision not in (None, "main", "v1"):
            raise ValueError(f"no revision {revision}")
        return SimpleNamespace(sha=OTHER if revision == "v1" else COMMIT, card_data={"license": "apache-2.0"})

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    return asked


def test_a_hub_id_is_pinned_to_the_commit_of_its_first_use(root, hub):
    wanted = model(root, "HuggingFaceTB/SmolLM2-1.7B")
    assert wanted.name == "smollm2-1_7b"
    source = {"kind": "hub", "id": "HuggingFaceTB/SmolLM2-1.7B", "revision": COMMIT}
    assert wanted.entry == {"licence": "apache-2.0", "source": source}
    assert hub == [("HuggingFaceTB/SmolLM2-1.7B", None)]
    declare(root, "models", **{wanted.name: wanted.entry})
    again = model(root, "HuggingFaceTB/SmolLM2-1.7B")
    assert (again.name, again.entry, len(hub)) == (wanted.name, None, 1)  # not asked again: the commit stays
    assert model(root, "HuggingFaceTB/SmolLM2-1.7B@main").entry is None
    assert model(root, f"HuggingFaceTB/SmolLM2-1.7B@{COMMIT}").entry is None
    other = model(root, "HuggingFaceTB/SmolLM2-1.7B@v1")
    assert other.name == "huggingfacetb-smollm2-1_7b"
    assert other.entry["source"]["revision"] == OTHER


def test_a_commit_need_not_be_asked_for(root, hub):
    assert model(root, f"a/b@{OTHER}").entry == {"source": {"kind": "hub", "id": "a/b", "revision": OTHER}}
    assert hub == []
    with pytest.raises(
        InputError,
        match=r"^model: a/b@v9 is not a directory or file here, and cannot ask the hub for a/b: no revision v9$",
    ):
        model(root, "a/b@v9")


def test_a_hub_that_cannot_be_reached_is_one_line(root, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"^model: runs/mine is not a directory or file here, and cannot ask the hub for runs"
    ):
        model(root, "runs/mine")


# -- benchmarks -------------------------------------------------------------------------------------------------------


def test_a_file_of_rows_is_pinned_and_recognised(root):
    path = quiz(root / "rows" / "Quiz 2.jsonl")
    wanted = benchmark(root, "rows/Quiz 2.jsonl")
    assert wanted.name == "quiz-2"
    assert wanted.entry["train"]["source"] == {"kind": "path", "path": "rows/Quiz 2.jsonl", "sha256": sha256_file(path)}
    assert spec_of(wanted, load_settings(root)).limits.test == 400
    declare(root, "benchmarks", own=wanted.entry | {"prompt": "My words: {{ question }}"})
    again = benchmark(root, str(path))
    assert (again.name, again.entry, again.pins) == ("own", None, {})
    quiz(path, right=1)
    moved = benchmark(root, "rows/Quiz 2.jsonl")
    assert moved.pins == {("train", "source", "sha256"): sha256_file(path)}


def test_a_file_does_not_take_the_name_of_a_benchmark_of_the_library(root):
    quiz(root / "mine" / "boolq.jsonl")
    assert benchmark(root, "mine/boolq.jsonl").name == "mine-boolq"
    assert benchmark(root, "boolq").entry["spec"] == "boolq"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("quiz.jsonl", "benchmark: no such file or directory: quiz.jsonl"),
        ("./quiz", "benchmark: no such file or directory: ./quiz"),
        (
            "params.yaml",
            "benchmark: params.yaml is neither a benchmark of the library nor a file .jsonl, .csv, .parquet",
        ),
        (
            "ss2",
            "benchmarks: 'ss2' is not declared in params.yaml; choose from ['reviews']; no benchmark 'ss2' in the lib",
        ),
    ],
)
def test_what_is_no_benchmark_is_refused(root, text, problem):
    with pytest.raises(InputError) as refused:
        benchmark(root, text)
    assert str(refused.value).startswith(problem)


def test_the_directory_of_the_library_is_not_for_a_file(root):
    quiz(root / "quiz.jsonl")
    with pytest.raises(InputError, match=r"^data: is for a benchmark of the library, not for a file of rows$"):
        benchmark(root, "quiz.jsonl", data="rows")


def test_the_hash_is_that_of_the_source(root, tmp_path):
    directory: Path = save_tiny(tmp_path / "m")
    assert hash_of_model(directory, field="path") == sha256_directory(directory)
