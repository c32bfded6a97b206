"""Registration: once per content, repaired after a crash, served without pickle from any directory.

Every test runs on a database file and, slowly, on a tracking server that keeps its runs in PostgreSQL, unless it is
about one of them.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.evidence.verdict import verdict
from tasks.pipeline.cell import Cell, open_cell
from tasks.pipeline.cell_pages import PAGES, made_of, write_page
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, write_json, write_parquet, write_text
from tasks.steps.report import report
from tasks.tracking.export import apply, export
from tasks.tracking.leaderboard import NOTE
from tasks.tracking.promotion import judge
from tasks.tracking.provenance import git_tags
from tasks.tracking.record import register
from tasks.tracking.served_model import _example
from tasks.tracking.store import EXPERIMENT, FLOW, tracking_uri
from tests.cells import servable_cell
from tests.steps.test_steps import quiz_cell

# mlflow 3.17 with the installed sqlalchemy and pandas; not ours to mend
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:pandas.errors.Pandas4Warning"),
]
NAME = "tiny-reviews"
METRICS = {
    "accuracy_base", "accuracy_random", "stderr_pruned", "difference", "exact_match_base", "exact_match_pruned",
    "exact_match_random", "exact_match_difference", "exact_match_difference_low", "exact_match_p_value",
    "difference_low", "difference_high", "acc_norm_base", "acc_norm_pruned", "adaptation_accuracy", "transfer_spearman",
    "transfer_regret", "transfer_percentile",
}  # fmt: skip
ENVIRONMENT = (
    "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "MLFLOW_LOGGING_LEVEL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT",
)  # fmt: skip


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished cell and an empty tracking database, which takes seconds to create."""
    root = servable_cell(tmp_path_factory.mktemp("master")).root
    MlflowClient(tracking_uri(root), tracking_uri(root)).search_experiments()
    return root


@pytest.fixture(params=["file", pytest.param("server", marks=pytest.mark.slow)])
def cell(
    request: pytest.FixtureRequest, master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cell]:
    for name in ENVIRONMENT:  # register sets some of them; monkeypatch restores them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("tracking").address)
    shutil.copytree(master, tmp_path / "project")
    yield open_cell(root=tmp_path / "project")
    mlflow.set_tracking_uri("")
    mlflow.set_registry_uri("")


on_a_file = pytest.mark.parametrize("cell", ["file"], indirect=True)


def store(cell: Cell) -> tuple[MlflowClient, list[Any], list[Any]]:
    """The client, all runs and all model versions."""
    client = MlflowClient(tracking_uri(cell.root), tracking_uri(cell.root))
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    return client, runs, client.search_model_versions(f"name = '{NAME}'")


@on_a_file
def test_a_page_about_another_pruned_model_is_not_registered(cell: Cell) -> None:
    write_text(cell.test, "rows")
    for name, others in PAGES.items():
        write_page(cell, name, {}, made_of(cell.pruned, cell.test), dict.fromkeys(others, b"page"))
    pages = {file for name, others in PAGES.items() for file in (name, *others)}
    for expected in (pages, set()):
        register(cell)
        client, _, versions = store(cell)
        newest = max(versions, key=lambda version: int(version.version))
        logged = {artifact.path for artifact in client.list_artifacts(newest.run_id)}
        assert logged & pages == expected
        recipe = read_json(cell.pruned)
        write_json(cell.pruned, recipe | {"adaptation": recipe["adaptation"] | {"margin": 0.42}})
    assert len(versions) == 2
    assert {path.name for path in cell.directory.iterdir()} & pages == {"nsa.json", "nsa.html", "nsa.safetensors"}


def test_new_evidence_for_the_same_version_is_a_new_run(cell: Cell) -> None:
    register(cell)
    write_json(cell.transfer, read_json(cell.transfer) | {"n": 41})
    for _ in range(2):
        register(cell)
        _, runs, versions = store(cell)
        assert (len(runs), len(versions)) == (2, 1)
    client, _, (version,) = store(cell)
    assert client.get_run(version.run_id).info.status == "FINISHED"


@on_a_file
def test_a_run_names_cell_and_day_and_stands_alone(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FLOW, "0-1 nightly owl")
    register(cell)
    client, (run,), (version,) = store(cell)
    assert re.fullmatch(r"tiny on reviews, \d{4}-\d\d-\d\d", run.info.run_name)
    assert (run.data.tags["flow_run_id"], run.data.tags["flow_run_name"]) == ("0-1", "nightly owl")
    assert "mlflow.parentRunId" not in run.data.tags
    told = verdict(read_json(cell.pruned), read_json(cell.evaluation))
    for described in (run.data.tags["mlflow.note.content"], version.description):
        assert described == f"{told.headline}. {told.sentence} {told.control}"
    tags = client.get_experiment(run.info.experiment_id).tags
    assert f"[tiny on reviews](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})" in tags[NOTE]


def test_registers_once_per_content(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    register(cell)
    assert capsys.readouterr().out == f"{NAME}: registered as version 1 (challenger)\n"
    timing = cell.scratch / "timings" / "score.json"
    write_json(timing, read_json(timing) | {"seconds": 99.0})  # a time is not content
    register(cell)
    assert capsys.readouterr().out == f"{NAME}: already registered as version 1 (challenger)\n"
    client, (run,), (version,) = store(cell)
    assert version.run_id == run.info.run_id
    evaluation = read_json(cell.evaluation)
    metrics = run.data.metrics
    assert metrics["accuracy_pruned"] == evaluation["systems"]["pruned"]["accuracy"]
    assert metrics["p_value"] == evaluation["comparisons"]["pruned_vs_base"]["p"]
    assert metrics["seconds_score"] == 1.5
    assert set(metrics) >= METRICS
    assert run.data.params["attribution.tolerance"] == "0.01"
    assert "attribution.steps" not in run.data.params  # belongs to the other rule
    top = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "pruned.json", "evaluation.json", "figures", "tables"} <= top

    first = read_json(cell.pruned)
    write_json(cell.pruned, first | {"adaptation": first["adaptation"] | {"margin": 0.5}})
    register(cell)
    client, runs, versions = store(cell)
    assert (len(runs), len(versions)) == (2, 2)
    assert client.get_model_version_by_alias(NAME, "challenger").version in (2, "2")
    write_json(cell.pruned, first)  # the old content again: the alias follows, nothing is registered
    capsys.readouterr()
    register(cell)
    assert capsys.readouterr().out == f"{NAME}: already registered as version 1 (challenger)\n"
    assert client.get_model_version_by_alias(NAME, "challenger").version in (1, "1")
    assert len(store(cell)[2]) == 2


@pytest.mark.parametrize(
    "crash",
    [
        "mlflow.log_text",
        "mlflow.register_model",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "mlflow.log_metrics",
                "mlflow.pyfunc.log_model",
                "tasks.tracking.record._check",
                "mlflow.MlflowClient.set_registered_model_alias",
            )
        ),
    ],
)
def test_the_next_call_heals_a_crash(cell: Cell, crash: str) -> None:
    class Crash(BaseException):
        pass

    def fail(*_: Any, **__: Any) -> None:
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crash, fail)
        with pytest.raises(Crash):
            register(cell)
    client, _, versions = store(cell)
    assert not versions or not client.get_registered_model(NAME).aliases
    register(cell)
    client, (run,), (version,) = store(cell)
    assert run.info.status == "FINISHED"
    assert client.get_model_version_by_alias(NAME, "challenger").version == version.version
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


def test_a_killed_run_is_replaced(cell: Cell) -> None:
    """kill -9 leaves the run RUNNING; only the finished one may stay."""
    register(cell)
    client, (run,), _ = store(cell)
    client.delete_registered_model(NAME)
    client.update_run(run.info.run_id, status="RUNNING")
    register(cell)
    _, (again,), (version,) = store(cell)
    assert again.info.run_id != run.info.run_id
    assert version.run_id == again.info.run_id


SERVE = """
import mlflow, pandas as pd, pathlib, sys
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny-reviews@challenger")
texts = [prompt.split("\\n\\n")[1] for prompt in pd.read_parquet(sys.argv[2])["prompt"]]
answers = model.predict(pd.DataFrame({"text": texts}))
answers.to_parquet(sys.argv[3])
import tasks
assert pathlib.Path(tasks.__file__).parts[-3:-1] == ("code", "tasks"), tasks.__file__  # the version's own copy
"""


def test_loads_by_alias_without_pickle_from_any_directory(cell: Cell, tmp_path: Path) -> None:
    register(cell)
    _, (run,), _ = store(cell)
    kept = [Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(tmp_path / "of the run")))]
    kept += [Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@challenger", dst_path=str(tmp_path / "model")))]
    files = [path for directory in kept for path in directory.rglob("*")]
    assert {"report.html", "model.safetensors"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".bin")]
    # The loading process has neither the project's code nor the exported directory.
    away = tmp_path / "elsewhere"
    away.mkdir()
    (away / "serve.py").write_text(SERVE, encoding="utf-8")
    environment = os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    arguments = [tracking_uri(cell.root), str(cell.predictions), str(away / "answers.parquet")]
    subprocess.run([sys.executable, "serve.py", *arguments], cwd=away, env=environment, check=True, timeout=120)
    answers, expected = pd.read_parquet(away / "answers.parquet"), pd.read_parquet(cell.predictions)
    assert list(answers) == ["option", "p(negative)", "p(positive)"]
    assert answers["option"].tolist() == [["negative", "positive"][i] for i in expected["pruned"]]
    assert (answers[["p(negative)", "p(positive)"]].sum(axis=1) - 1).abs().max() < 1e-6


def callers_run(uri: str) -> tuple[MlflowClient, Any]:
    """A run that another process has started."""
    client = MlflowClient(uri, uri)
    mine = client.create_experiment("of the caller")
    run = client.create_run(mine, run_name="of the caller", tags={"a": "b"})
    client.log_param(run.info.run_id, "benchmark", "another")
    return client, client.get_run(run.info.run_id)


def told_of(run: Any) -> tuple[Any, ...]:
    data = run.data
    return dict(run.info), data.params, data.metrics, data.tags, run.outputs.model_outputs if run.outputs else []


@pytest.mark.parametrize("where", ["the same store", "another store"])
def test_the_run_of_the_caller_is_left_alone(
    cell: Cell, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tracking_uri(cell.root)
    if where == "another store":
        shutil.copy(cell.root / "mlflow.db", tmp_path / "other.db")
        uri = f"sqlite:///{tmp_path / 'other.db'}"
    client, run = callers_run(uri)
    variables = {
        "MLFLOW_RUN_ID": run.info.run_id,
        "MLFLOW_EXPERIMENT_ID": run.info.experiment_id,
        "MLFLOW_EXPERIMENT_NAME": "of somebody else",
        "MLFLOW_RUN_CONTEXT": '{"of": "the caller", "cell": "another"}',
        "MLFLOW_ACTIVE_MODEL_ID": "m-of-the-caller",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    register(cell)
    first = read_json(cell.pruned)
    write_json(cell.pruned, first | {"adaptation": first["adaptation"] | {"margin": 0.5}})
    register(cell)
    judge(cell)
    assert {name: os.environ.get(name) for name in variables} == variables
    assert told_of(client.get_run(run.info.run_id)) == told_of(run)
    client, runs, versions = store(cell)
    assert len(versions) == len(runs) == 2
    assert {made.info.status for made in runs} == {"FINISHED"}
    assert all(made.data.tags["cell"] == NAME and "of" not in made.data.tags for made in runs)
    assert all(made.data.params["benchmark"] == "reviews" for made in runs)
    assert {model.source_run_id for model in client.search_logged_models([runs[0].info.experiment_id])} == {
        made.info.run_id for made in runs
    }


@on_a_file
@pytest.mark.parametrize("where", ["the same store", "another store"])
def test_a_run_that_is_open_in_this_process_goes_on(cell: Cell, where: str, tmp_path: Path) -> None:
    uri = tracking_uri(cell.root)
    if where == "another store":
        shutil.copy(cell.root / "mlflow.db", tmp_path / "other.db")
        uri = f"sqlite:///{tmp_path / 'other.db'}"
        mlflow.set_tracking_uri(uri)
        os.environ.pop("MLFLOW_TRACKING_URI")  # the address is that of this process, not of the steps
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run() as run:
        register(cell)
        assert mlflow.active_run().info.run_id == run.info.run_id
        mlflow.log_metric("of the caller", 1.0)
    left = MlflowClient(uri, uri).get_run(run.info.run_id)
    assert left.info.status == "FINISHED"
    assert (left.data.params, left.data.metrics) == ({}, {"of the caller": 1.0})
    _, (made,), (version,) = store(cell)
    assert version.run_id == made.info.run_id != run.info.run_id
    assert "mlflow.parentRunId" not in made.data.tags


@on_a_file
def test_what_is_exported_and_registered_is_as_readable_as_the_umask_says(cell: Cell) -> None:
    cell.scores.chmod(0o644)  # the file of the fixture, not of a step
    before = os.umask(0o022)
    try:
        register(cell)
        export(cell, cell.root / "exported")
        apply(cell.pruned, cell.model_dir, cell.root / "applied")
    finally:
        os.umask(before)
    for name in ("mlartifacts", "exported", "applied"):
        files = [path for path in (cell.root / name).rglob("*") if path.is_file()]
        assert "model.safetensors" in {path.name for path in files}
        assert {path.name: path.stat().st_mode & 0o777 for path in files} == {path.name: 0o644 for path in files}


def test_alias_stays_when_the_model_answers_otherwise(cell: Cell) -> None:
    frame = pd.read_parquet(cell.predictions)
    frame["pruned_logprobs"] = [[0.0, -9.0]] * len(frame)
    write_parquet(cell.predictions, frame)
    with pytest.raises(InputError, match="no alias was moved"):
        register(cell)
    client, _, _ = store(cell)
    assert not client.get_registered_model(NAME).aliases


def test_tags_name_the_commit_and_the_locked_hashes(cell: Cell) -> None:
    lock = {
        "schema": "2.0",
        "stages": {
            "score@tiny-reviews": {"outs": [{"path": "data/cells/tiny/reviews/scores.safetensors", "md5": "1a"}]},
            "model@tiny": {"outs": [{"path": "data/models/tiny", "md5": "2b.dir"}]},
            "score@tiny-reviews2": {"outs": [{"path": "data/cells/tiny/reviews2/scores.safetensors", "md5": "3c"}]},
        },
    }
    write_text(cell.root / "dvc.lock", yaml.safe_dump(lock))
    git = ["git", "-C", str(cell.root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True)
    register(cell)
    tags = store(cell)[1][0].data.tags
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert (tags["git_commit"], tags["git_dirty"]) == (head, "false")  # dvc.lock and the results are not committed
    assert {key: value for key, value in tags.items() if key.startswith("dvc.")} == {
        "dvc.scores.safetensors": "1a",
        "dvc.data/models/tiny": "2b.dir",
    }


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("params.yaml", "true"),
        ("tasks/steps/score.py", "true"),
        ("tasks/new.py", "true"),
        ("flows/cli.py", "true"),
        ("constraints.txt", "true"),
        ("dvc.lock", "false"),
        ("rows.jsonl", "false"),
        ("docs/studies.md", "false"),
    ],
)
def test_dirty_is_about_code_and_settings(tmp_path: Path, path: str, dirty: str) -> None:
    for name in ("params.yaml", "dvc.lock", "tasks/steps/score.py", "flows/cli.py", "docs/studies.md"):
        write_text(tmp_path / name, "before")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True)
    assert git_tags(tmp_path)["git_dirty"] == "false"
    write_text(tmp_path / path, "after")
    assert git_tags(tmp_path)["git_dirty"] == dirty


@on_a_file
def test_a_cell_without_a_report_is_refused(cell: Cell) -> None:
    (cell.root / "mlflow.db").unlink()
    cell.report.unlink()
    with pytest.raises(InputError, match=r"tiny-reviews: report.html does not exist"):
        register(cell)
    assert not (cell.root / "mlflow.db").exists()


@on_a_file
def test_an_unusable_address_is_one_line(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://nowhere")
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI: ftp://nowhere cannot be used"):
        register(open_cell(root=cell.root))


@pytest.mark.parametrize(
    ("template", "prompt", "row"),
    [
        ("{{ a }}\nQ: {{b}}?", "x\ny\nQ: z?", {"a": "x\ny", "b": "z"}),
        ("{{ a }} and {{ a }}", "1 and 1", {"a": "1"}),
        ("{{ a | upper }}", "X", {"a": "<a>"}),
    ],
)
def test_input_example(template: str, prompt: str, row: dict[str, str]) -> None:
    assert _example(template, sorted(row), prompt).to_dict("records") == [row]


@on_a_file
def test_a_column_with_a_blank_in_its_name_is_an_input(cell: Cell) -> None:
    params = yaml.safe_load((cell.root / "params.yaml").read_text())
    reviews = params["benchmarks"]["reviews"]
    reviews["train"]["fields"] = {"The Text": "{{ text }}"}
    reviews["prompt"] = reviews["prompt"].replace("{{ text }}", '{{ row["The Text"] }}')
    (cell.root / "params.yaml").write_text(yaml.safe_dump(params))
    register(open_cell(root=cell.root))
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@challenger")
    assert loaded.metadata.get_input_schema().input_names() == ["The Text"]
    frame = pd.read_parquet(cell.predictions)
    texts = [prompt.split("\n\n")[1] for prompt in frame["prompt"]]
    answers = loaded.predict(pd.DataFrame({"The Text": texts}))
    assert answers["option"].tolist() == [["negative", "positive"][i] for i in frame["pruned"]]


def test_options_of_the_row_are_an_input(cell: Cell, tmp_path: Path) -> None:
    quiz = quiz_cell(tmp_path / "quiz")
    report(quiz)
    register(quiz)
    loaded = mlflow.pyfunc.load_model(f"models:/{quiz.name}@challenger")
    frame = pd.read_parquet(quiz.predictions).head(3)
    options = pd.read_parquet(quiz.test).set_index("id")["options"]
    choices = [list(options[name]) for name in frame["id"]]
    answers = loaded.predict(pd.DataFrame({"prompt": frame["prompt"], "options": choices}))
    assert [
        option == of[index].strip()
        for option, of, index in zip(answers["option"], choices, frame["pruned"], strict=True)
    ] == [True] * 3
    assert [len(p) for p in answers["p"]] == [4] * 3
    model = loaded.unwrap_python_model()
    for options, told in (
        ([" a"], "row 1: options must be a list of at least two texts"),
        ("no list", "row 1: options must be a list of at least two texts"),
        ([" a", " a"], "have the same tokens for this model"),
    ):
        with pytest.raises(MlflowException, match=told) as refused:
            model.predict(None, pd.DataFrame({"prompt": ["Which?"], "options": [options]}))
        assert refused.value.get_http_status_code() == 400


@on_a_file
@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_path_that_mlflow_cannot_take_is_refused(cell: Cell, tmp_path: Path, name: str) -> None:
    """Otherwise the database is written beside the project, or the model's files are searched for elsewhere."""
    (tmp_path / "project").rename(tmp_path / name)
    (tmp_path / name / "mlflow.db").unlink()
    with pytest.raises(InputError, match=r"^project: the path "):
        register(open_cell(root=tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not (tmp_path / name / "mlartifacts").exists()


@on_a_file
def test_a_path_of_awkward_characters(cell: Cell, tmp_path: Path) -> None:
    name = "a#b %c'd\"[e]\\é&f=g;h@+"
    (tmp_path / "project").rename(tmp_path / name)
    (tmp_path / name / "mlflow.db").unlink()
    moved = open_cell(root=tmp_path / name)
    register(moved)
    assert (tmp_path / name / "mlflow.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    client, _, _ = store(moved)
    assert client.get_model_version_by_alias(NAME, "challenger").version in (1, "1")
