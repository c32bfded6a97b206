"""`dsm plan` of models and benchmarks that params.yaml lacks: what a run would do. Nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from flows.declaring import Asked, declare, preview
from flows.plan import ASSUMED, forward_passes, make_plan
from tasks.pipeline.cell import open_cell
from tasks.pipeline.model_size import ModelSize, model_size
from tasks.runtime.files import write_json, write_text
from tests.flows.stand_in_project import REAL
from tests.flows.test_cli import call
from tests.models.test_conversion import write_gguf
from tests.tiny import save_tiny

TINY = ModelSize(layers=3, hidden=32, intermediate=48, heads=4, key_value_heads=2)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def own(project: Path) -> Path:
    """The real params.yaml and dvc.yaml beside a user's own models and rows, without a repository of DVC."""
    for name in ("params.yaml", "dvc.yaml"):
        write_text(project / name, (REAL / name).read_text())
    save_tiny(project / "mine" / "Tiny-1.0")
    write_gguf(project / "mine" / "small.gguf")
    rows = [{"question": f"Is {i} odd?", "choices": ["no", "yes"], "answer": i % 2} for i in range(40)]
    write_text(project / "mine" / "quiz.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return project


@pytest.mark.parametrize("model", ["mine/Tiny-1.0", "mine/small.gguf"])
def test_the_plan_is_that_of_the_cell_that_a_run_would_add(own: Path, model: str) -> None:
    before = contents(own)
    code, out, err = call("plan", "--model", model, "--benchmark", "mine/quiz.jsonl", "--json")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    code, table, err = call("plan", "--model", model, "--benchmark", "mine/quiz.jsonl")
    assert (code, err) == (0, "")
    assert contents(own) == before
    name = "tiny-1_0" if model == "mine/Tiny-1.0" else "small"
    assert f"`dsm run` adds to params.yaml: models.{name}: " in table
    assert "label from 'answer'" in table
    assert "`dsm run` adds to params.yaml: benchmarks.quiz\n" in table
    assert (plan["model"], plan["benchmark"], plan["assumed"]) == (name, "quiz", "")
    assert "not known" not in plan["basis"]
    cell = preview(own, Asked([model], ["mine/quiz.jsonl"]))[0]
    passes = {line["stage"].partition("@")[0]: line["passes"] for line in plan["lines"]}
    assert passes["search"] == round(forward_passes(cell, TINY)["search"])
    declare(own, Asked([model], ["mine/quiz.jsonl"]))
    assert open_cell(name, "quiz", own) == cell


def test_the_plan_warns_of_a_model_that_knows_one_answer(own: Path) -> None:
    declare(own, Asked(["mine/Tiny-1.0"], ["mine/quiz.jsonl"]))
    found = {"n": 40, "labeled": 10, "accuracy": 0.5, "predicted": [40, 0], "options": ["no", "yes"]}
    cell = open_cell("tiny-1_0", "quiz", own)
    write_json(cell.preflight, found)
    told = "the unpruned model answers 40 train rows with 'no' 40, 'yes' 0 times, and 5 of the 10 examples correctly"
    assert f"{told}: pruning can hardly" in make_plan(cell).basis
    write_json(cell.preflight, found | {"predicted": [25, 15]})
    assert make_plan(cell).basis.endswith(told.replace("40, 'yes' 0", "25, 'yes' 15"))


def test_a_benchmark_of_the_library_is_planned_from_its_files(own: Path) -> None:
    for name in ("train", "test"):
        write_text(own / "rows" / "sst2" / f"{name}.jsonl", '{"sentence": "good", "label": 1}\n')
    before = contents(own)
    code, out, err = call("plan", "--model", "mine/Tiny-1.0", "--benchmark", "sst2", "--data", "rows", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["benchmark"] == "sst2"
    assert contents(own) == before


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--model mine/absent --data rows", "data: is for a benchmark that is taken from the library; name it with"),
        ("--model ./absent", "model: no such file or directory: ./absent (looked in "),
        ("--model mine", "model: {root}/mine is not a model directory: it has no config.json"),
        ("--benchmark mine/absent.csv", "benchmark: no such file or directory: mine/absent.csv (looked in "),
        ("--model mine/quiz.jsonl", "model: {root}/mine/quiz.jsonl is not a model: a directory with"),
    ],
)
def test_bad_input_is_refused_in_one_line(own: Path, options: str, problem: str) -> None:
    before = contents(own)
    code, out, err = call("plan", *options.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {problem.format(root=own)}")
    assert contents(own) == before


def test_a_model_directory_that_does_not_say_its_size(own: Path) -> None:
    path = own / "mine" / "Tiny-1.0" / "config.json"
    config = json.loads(path.read_text())
    for change, problem in (
        ({"hidden_size": None}, "has no hidden_size, a whole number from 1, but None\n"),
        ({"num_hidden_layers": 0}, "has no num_hidden_layers, a whole number from 1, but 0\n"),
    ):
        path.write_text(json.dumps(config | change))
        code, out, err = call("plan", "--model", "mine/Tiny-1.0", "--benchmark", "mine/quiz.jsonl")
        assert (code, out) == (2, "")
        assert err.startswith("error: models.tiny-1_0.source: ")
        assert err.endswith(problem)


def test_the_size_of_a_hub_model_is_unknown_until_its_configuration_is_cached(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    options = ("plan", "--model", f"org/large@{COMMIT}", "--benchmark", "mine/quiz.jsonl")
    code, out, err = call(*options)
    assert (code, err) == (0, "")
    told = " ".join(out.split())
    assert "the size of large is not known before it is fetched" in told
    assert "total, estimated for 106 million weights in 30 layers" in told
    assert json.loads(call(*options, "--json")[1])["assumed"] == "106 million weights in 30 layers"
    snapshot = tmp_path / "hub" / "models--org--large" / "snapshots" / COMMIT
    size = {"num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12}
    write_text(snapshot / "config.json", json.dumps(size | {"num_key_value_heads": 2}))
    plan = json.loads(call(*options, "--json")[1])
    assert plan["assumed"] == ""
    passes = {line["stage"].partition("@")[0]: line["passes"] for line in plan["lines"]}
    cell = preview(own, Asked([options[2]], [options[4]]))[0]
    found = model_size(cell.model_spec, cell.model_dir, own, field="model")
    assert found == ModelSize(layers=28, hidden=1536, intermediate=8960, heads=12, key_value_heads=2)
    assert passes["search"] == round(forward_passes(cell, found)["search"])
    # Every weight of the decoder's matrices once: 1.31e9 for this one, 1.06e8 for the default model.
    assert found.multiply_adds == 28 * (2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960)
    assert found.multiply_adds > 10 * ASSUMED.multiply_adds


def test_a_file_that_has_changed_makes_all_that_reads_it_run(finished_stand_ins: Path) -> None:
    project = finished_stand_ins
    save_tiny(project / "tiny")
    before = (project / "params.yaml").read_bytes()

    def does(*options: str) -> Callable[[str], str]:
        code, out, err = call("plan", *options, "--json")
        assert (code, err) == (0, "")
        return {line["stage"].partition("@")[0]: line["does"] for line in json.loads(out)["lines"]}.__getitem__

    assert does("--model", "tiny")("score") == "cached"
    found = does("--model", "./tiny")  # another hash than that of params.yaml
    assert [found(step) for step in ("model", "data", "sample", "report")] == ["run", "cached", "run", "run"]
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ("--limit 5", "data"),
        ("--seed 7", "sample"),
        ("--set attribution.max_nodes=8", "score"),
        ("--set search.criterion=exact_match", "search"),
        ("--set precision.evaluate=bfloat16", "evaluate"),
        ("--set retrain.promotion.alpha=0.01", None),
    ],
)
def test_options_of_a_run_are_planned_and_not_written(
    finished_stand_ins: Path, options: str, first: str | None
) -> None:
    """What reads a changed setting runs, with all that depends on it; what `dsm run` did with the rest stays cached."""
    before = (finished_stand_ins / "params.yaml").read_bytes()
    code, out, err = call("plan", *options.split(), "--json")
    assert (code, err) == (0, "")
    does = {line["stage"].partition("@")[0]: line["does"] for line in json.loads(out)["lines"]}
    does.pop("register")
    stale = [step for step, what in does.items() if what == "run"]
    assert stale[:1] == ([first] if first else [])
    assert set(does.values()) <= {"run", "cached"}
    assert ("report" in stale) is (first is not None)
    assert does["model"] == "cached"
    assert "`dsm run` changes in params.yaml: " in call("plan", *options.split())[1]
    assert (finished_stand_ins / "params.yaml").read_bytes() == before


def test_options_of_a_run_change_the_estimate(own: Path) -> None:
    def passes(*options: str) -> dict[str, int]:
        out = call("plan", "--model", "mine/Tiny-1.0", "--benchmark", "mine/quiz.jsonl", "--json", *options)[1]
        return {line["stage"].partition("@")[0]: line["passes"] for line in json.loads(out)["lines"]}

    whole, limited, fewer = passes(), passes("--limit", "5"), passes("--set", "search.fractions=[0.1]")
    assert limited["evaluate"] < whole["evaluate"]
    assert limited["search"] == whole["search"]
    assert fewer["search"] < whole["search"]
