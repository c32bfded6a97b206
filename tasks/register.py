"""The step `register`: what came out of a cell goes to MLflow, and its pruned model into the registry.

No DVC stage: its effect lies in MLflow. Everything is found by a hash of the content, so that a second call does
nothing, and a call after a crash goes on from what the crashed one had finished. The alias moves last. Of two machines
that register the same content on one server at the same time, the lower version stays.
"""

import importlib.metadata
import os
import re
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tasks.benchmarks.columns import ABSENT
from tasks.evidence.verdict import verdict
from tasks.pipeline.cell import Cell
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import read_json, read_jsonl, sha256_file, sha256_json
from tasks.pipeline.pages import remove_stale_explanation, stale_pages
from tasks.pipeline.step import run_step
from tasks.registry import CHALLENGER, CONTENT, check_answers, options_of, probabilities, store

EVIDENCE = "evidence"  # the tag of a run that says which report and transfer check it holds
PROJECT = "project"  # the tag of a run that says which directory of which machine it comes from
FLOW = "DSM_FLOW_RUN"  # id and name of the flow run that this step is part of; a tag of the run that stands for it
# What `git_dirty` is about; not dvc.lock and files of data.
CODE_AND_SETTINGS = ("tasks", "flows", "dvc.yaml", "params.yaml", "pyproject.toml", "constraints.txt")
CHECKED = 8  # test rows that a version must answer as `evaluate` did before the alias moves
LAST_SAMPLES = 450  # of the machine's use, twice as many metrics: a call of MLflow takes a thousand
# What the served model needs (serving.py and the packages below it); the exact versions that are installed here.
REQUIREMENTS = (
    "mlflow", "torch", "transformers", "safetensors", "tokenizers", "numpy", "pandas", "pydantic", "jinja2", "pyyaml",
    "psutil",
)  # fmt: skip


def register(cell: Cell) -> None:
    """Logs the cell as an MLflow run, registers its pruned model as `<model>-<benchmark>`, and moves the alias to it.

    Raises:
        InputError: a file of the cell is not there, MLflow cannot be reached, or the registered model does not answer
            as predictions.parquet says.
    """
    for path in (cell.pruned, cell.evaluation, cell.predictions, cell.report):
        if not path.exists():
            raise InputError(cell.name, f"{path.name} is not there; the cell's earlier steps have not run")
    remove_stale_explanation(cell)
    content = _content(cell)
    with store(cell.root) as (client, experiment):
        version, is_new = _version(client, experiment, cell, content)
        if not is_new:
            _log_new_evidence(client, experiment, cell, content)
        aliases = client.get_registered_model(cell.name).aliases
        if int(aliases.get(CHALLENGER, 0)) != version:
            _check(cell, version)
            client.update_model_version(cell.name, str(version), description=_description(cell))
            client.set_registered_model_alias(cell.name, CHALLENGER, str(version))
    print(f"{cell.name}: {'registered as' if is_new else 'already registered as'} version {version} ({CHALLENGER})")


def _content(cell: Cell) -> str:
    """Hash of what a version stands for: the recipe (with the base's hash), its evidence, and how it is asked."""
    spec = cell.benchmark_spec
    parts = {"pruned": read_json(cell.pruned), "evaluation": read_json(cell.evaluation)}
    asked: dict[str, Any] = {"prompt": spec.prompt, "options": spec.options}
    if cell.columns.exists():
        asked["kinds"] = read_json(cell.columns)["kinds"]
    return sha256_json(parts | asked | ({"chat": spec.chat} if spec.chat else {}))


def _version(client: Any, experiment: str, cell: Cell, content: str) -> tuple[int, bool]:
    """The number of the version with this content, and whether it was made by this call."""
    import mlflow

    if known := _first(client, cell, content):
        return int(known.version), False
    model_id = _logged_model(client, experiment, cell, content)
    made = mlflow.register_model(f"models:/{model_id}", cell.name, tags={CONTENT: content})
    first = _first(client, cell, content)
    if int(first.version) == int(made.version):
        return int(made.version), True
    client.delete_model_version(cell.name, made.version)
    if first.run_id != made.run_id:
        client.delete_logged_model(model_id)
        client.delete_run(made.run_id)
    return int(first.version), False


def _first(client: Any, cell: Cell, content: str) -> Any:
    """The version with this content; the lowest, while another machine takes its own back. None if there is none."""
    versions = client.search_model_versions(f"name = '{cell.name}'")
    same = [version for version in versions if version.tags.get(CONTENT) == content]
    return min(same, key=lambda version: int(version.version), default=None)


def _project(cell: Cell) -> str:
    return f"{socket.gethostname()}:{cell.root.resolve()}"


def _logged_model(client: Any, experiment: str, cell: Cell, content: str) -> str:
    """The id of the model in the finished run with this content; one that did not finish is replaced."""
    for run in client.search_runs([experiment], f"tags.{CONTENT} = '{content}' and tags.cell = '{cell.name}'"):
        status, from_here = run.info.status, run.data.tags.get(PROJECT) == _project(cell)
        if status == "FINISHED" and run.outputs and run.outputs.model_outputs:
            return str(run.outputs.model_outputs[0].model_id)
        # One that runs elsewhere may be alive; none from here is, since only one process has the store.
        if status in ("FAILED", "KILLED") or (status == "RUNNING" and from_here):
            for output in run.outputs.model_outputs if run.outputs else ():
                client.delete_logged_model(output.model_id)
            client.delete_run(run.info.run_id)
    return _log_run(experiment, cell, content)


def _evidence(cell: Cell) -> str:
    """Hash of what may change while the version stays: the transfer check, and the report with all settings."""
    return sha256_json([sha256_file(path) for path in (cell.transfer, cell.report)])


def _log_new_evidence(client: Any, experiment: str, cell: Cell, content: str) -> None:
    """Logs a run without a model if the registered content has a report or transfer check that no run holds yet."""
    wanted = f"tags.{CONTENT} = '{content}' and tags.{EVIDENCE} = '{_evidence(cell)}' and tags.cell = '{cell.name}'"
    if not any(run.info.status == "FINISHED" for run in client.search_runs([experiment], wanted)):
        _log_run(experiment, cell, content, with_model=False)


def _log_run(experiment: str, cell: Cell, content: str, *, with_model: bool = True) -> str:
    """Logs everything that is known about the cell as a new run; returns the id of the logged model, if any."""
    import mlflow

    from tasks.evidence.figures import figures
    from tasks.evidence.reading import read_evidence

    client = mlflow.MlflowClient()
    evidence = read_evidence(cell)
    tags = {
        CONTENT: content,
        EVIDENCE: _evidence(cell),
        PROJECT: _project(cell),
        "cell": cell.name,
        "model": cell.model,
        "benchmark": cell.benchmark,
    }
    with mlflow.start_run(
        experiment_id=experiment,
        run_name=cell.name,
        tags=tags | _git(cell.root) | _dvc(cell),
        description=_description(cell),
        nested=True,  # whoever calls may have a run open: ours is not in it
        log_system_metrics=False,
    ) as run:
        _put_under(_parent(client, experiment), client, run)
        mlflow.log_params(_parameters(cell, evidence.pruned))
        mlflow.log_metrics(_metrics(cell))
        client.log_batch(run.info.run_id, metrics=_system_metrics(cell))
        left_out = {cell.report, *stale_pages(cell)}
        for path in (cell.report, *(path for path in sorted(cell.directory.iterdir()) if path not in left_out)):
            mlflow.log_artifact(str(path))
        for name, svg in figures(evidence).items():
            mlflow.log_text(svg, f"figures/{name}.svg")
        tables = {"grid": evidence.grid, "transfer": evidence.transfer_grid, "predictions": evidence.predictions}
        for name, frame in tables.items():
            mlflow.log_text(frame.to_csv(index=False), f"tables/{name}.csv")  # the UI shows CSV, not Parquet
        return _log_model(cell) if with_model else ""


def _log_model(cell: Cell) -> str:
    """Logs the exported model with the code that serves it, to the active run."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    from tasks.benchmarks.templates import fixed_options, names_used
    from tasks.export import export

    package = Path(__file__).parent
    spec = cell.benchmark_spec
    fixed = fixed_options(spec)
    names = [option.strip() for option in fixed or []]
    names = names if len(set(names)) == len(names) else list(fixed or [])
    sample = read_jsonl(cell.samples)[0]
    inputs: list[Any]
    outputs: list[Any] = [ColSpec("string", "option")]
    kinds: dict[str, list[str]] = {}
    if fixed:
        fields = sorted(names_used(spec.prompt))
        kinds = {name: ["text"] for name in fields}
        example = _example(spec.prompt, fields, sample["prompt"])
        if cell.columns.exists():
            columns = read_json(cell.columns)
            kinds, example = columns["kinds"], pd.DataFrame([columns["example"]])
        inputs = [_column(name, of) for name, of in kinds.items()]
        outputs += [ColSpec("double", f"p({name})") for name in names]
    else:
        inputs = [ColSpec("string", "prompt"), ColSpec(Array(DataType.string), "options")]
        outputs += [ColSpec(Array(DataType.double), "p")]
        example = pd.DataFrame({"prompt": [sample["prompt"]], "options": [sample["options"]]})
    cell.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cell.scratch) as work:
        checkpoint = Path(work) / "checkpoint"
        export(cell, checkpoint)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "serving.py"),
            artifacts={"checkpoint": str(checkpoint)},
            code_paths=[str(package)],
            model_config={
                "prompt": spec.prompt,
                "options": fixed,
                "names": names,
                "chat": spec.chat,
                "kinds": kinds,
            },
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            input_example=example,
            pip_requirements=[f"{name}=={_installed(name)}" for name in REQUIREMENTS],
        )
    return str(info.model_id)


def _column(name: str, kinds: list[str]) -> Any:
    """The column of the signature for values of these kinds.

    MLflow makes "false" true and 3.7 an integer before the model sees them, so such columns take any value: the model
    checks them itself.
    """
    from mlflow.types import ColSpec, DataType
    from mlflow.types.schema import AnyType, Array

    types: dict[str, Any] = {
        "text": DataType.string,
        "number": DataType.double,
        "list of texts": Array(DataType.string),
        "list of integers": Array(DataType.long),
        "list of numbers": Array(DataType.double),
        "list of booleans": Array(DataType.boolean),
    }
    only = types.get(kinds[0]) if len(kinds) == 1 else None
    return ColSpec(only or AnyType(), name, required=ABSENT not in kinds)  # type: ignore[no-untyped-call]


def _installed(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]  # no index knows local versions such as 2.13.0+cpu


def _example(template: str, fields: list[str], prompt: str) -> Any:
    """A frame with one row of input: the fields as they stand in a prompt, if the template has plain fields only."""
    import pandas as pd

    parts = re.split(r"\{\{\s*(\w+)\s*\}\}", template)
    pattern, seen = "", set()
    for i, part in enumerate(parts):
        if i % 2 == 0:
            pattern += re.escape(part)
        else:
            pattern += f"(?P={part})" if part in seen else f"(?P<{part}>.*?)"
            seen.add(part)
    found = re.fullmatch(pattern, prompt, re.DOTALL)
    values = found.groupdict() if found else {}
    return pd.DataFrame([{field: values.get(field, f"<{field}>") for field in fields}])


def _check(cell: Cell, version: int) -> None:
    """Loads the registered version back and compares its answers with those that `evaluate` wrote."""
    import pandas as pd

    rows = pd.read_parquet(cell.predictions).head(CHECKED)
    check_answers(cell.name, version, probabilities(cell.name, version, rows, options_of(cell, rows)), rows)


def _description(cell: Cell) -> str:
    told = verdict(read_json(cell.pruned), read_json(cell.evaluation))
    return f"{told.sentence} {told.control}"


def _parameters(cell: Cell, pruned: dict[str, Any]) -> dict[str, Any]:
    """The settings that the cell depends on, flattened, and what was chosen."""
    settings = cell.settings.model_dump(mode="json", exclude_none=True)
    settings["attribution"] = cell.settings.attribution.effective()
    found: dict[str, Any] = {"model": cell.model, "benchmark": cell.benchmark}
    for section in ("adaptation", "attribution", "search", "evaluation"):
        found |= _flat(settings[section], section)
    found |= _flat(settings["models"][cell.model], "model")
    found |= _flat(settings["benchmarks"][cell.benchmark], "benchmark")
    chosen = {"layer": pruned["layer"], "fraction": pruned["fraction"], "neurons": len(pruned["neurons"])}
    return found | _flat(chosen, "pruned")


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: leaf for key, inner in value.items() for name, leaf in _flat(inner, f"{prefix}.{key}").items()}


def _metrics(cell: Cell) -> dict[str, float]:
    """The same names for every cell; those of the transfer check only where there was one, NaN nowhere."""
    evaluation, pruned, transfer = (read_json(path) for path in (cell.evaluation, cell.pruned, cell.transfer))
    versus_base = evaluation["comparisons"]["pruned_vs_base"]
    found = {"difference": versus_base["difference"], "stderr_difference": versus_base["stderr"]}
    found |= {"p_value": versus_base["p"], "n": evaluation["n"]}
    found["adaptation_accuracy"] = pruned["adaptation"]["accuracy"]
    for name, system in evaluation["systems"].items():
        found |= {f"accuracy_{name}": system["accuracy"], f"stderr_{name}": system["stderr"]}
        if name != "random":
            found[f"exact_match_{name}"] = system["exact_match"]
    found |= {f"transfer_{name}": transfer.get(name) for name in ("spearman", "regret", "percentile")}
    for step, usage in _usages(cell).items():
        found |= {f"seconds_{step}": usage["seconds"], f"peak_gb_{step}": usage["peak_gb"]}
    return {name: float(value) for name, value in found.items() if value is not None}


def _usages(cell: Cell) -> dict[str, dict[str, Any]]:
    """What each step took when it last ran on this machine: see `tasks.pipeline.usage`."""
    return {path.stem: read_json(path) for path in sorted((cell.scratch / "timings").glob("*.json"))}


def _system_metrics(cell: Cell) -> list[Any]:
    """The samples of all steps under the names that MLflow gives its own, so that its page of them shows them."""
    from mlflow.entities import Metric

    samples = sorted(sample for usage in _usages(cell).values() for sample in usage["samples"])
    names = ("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes")
    return [
        Metric(name, value, when, step)
        for step, (when, *values) in enumerate(samples[-LAST_SAMPLES:])
        for name, value in zip(names, values, strict=True)
    ]


def _parent(client: Any, experiment: str) -> str | None:
    """The run that stands for the flow run that this step is part of; None outside a flow."""
    flow_run, _, name = os.environ.get(FLOW, "").partition(" ")
    if not flow_run:
        return None
    found = client.search_runs([experiment], f"tags.{FLOW} = '{flow_run}'")
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(experiment, run_name=name, tags={FLOW: flow_run})
    client.set_terminated(run.info.run_id)  # it holds no work of its own, so it is never left running
    return str(run.info.run_id)


def _put_under(parent: str | None, client: Any, run: Any) -> None:
    """Makes `parent` what the run belongs to, whatever MLflow took for it; None: the run stands alone."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    if parent:
        client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, parent)
    elif MLFLOW_PARENT_RUN_ID in run.data.tags:
        client.delete_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID)


def _git(root: Path) -> dict[str, str]:
    """The commit, and whether code and settings differ from it; empty outside a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = git("status", "--porcelain", "--untracked-files=all", "--", *CODE_AND_SETTINGS)
    return {"git_commit": commit, "git_dirty": str(bool(changed)).lower()}


def _dvc(cell: Cell) -> dict[str, str]:
    """The md5 in dvc.lock of every output that belongs to the cell; empty if the steps ran without DVC."""
    lock = cell.root / "dvc.lock"
    if not lock.exists():
        return {}
    mine = [path.relative_to(cell.root).as_posix() for path in (cell.directory, cell.model_dir, cell.benchmark_dir)]
    stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {
        f"dvc.{out['path'].removeprefix(mine[0] + '/')}": out["md5"]
        for out in outs
        if out["path"] in mine or out["path"].startswith(mine[0] + "/")
    }


if __name__ == "__main__":
    run_step(register, description=__doc__)
