"""Parameters, metrics and tags of a cell's MLflow run: settings, results, use of the machine, state of git and DVC."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tasks.evidence.verdict import measured
from tasks.pipeline.cell import Cell
from tasks.runtime.files import read_json

# The paths that `git_dirty` looks at: neither dvc.lock nor data.
CODE_AND_SETTINGS = ("tasks", "flows", "dvc.yaml", "params.yaml", "pyproject.toml", "constraints.txt")
LAST_SAMPLES = 450  # of two metrics each; one call of MLflow takes at most 1000 metrics


def parameters(cell: Cell, pruned: dict[str, Any]) -> dict[str, Any]:
    """The settings that the cell depends on, flattened, and the chosen layer, fraction and number of neurons."""
    settings = cell.settings.model_dump(mode="json", exclude_none=True)
    settings["attribution"] = cell.settings.attribution.effective()
    values: dict[str, Any] = {"model": cell.model, "benchmark": cell.benchmark}
    for section in ("adaptation", "attribution", "search", "evaluation"):
        values |= _flat(settings[section], section)
    values |= _flat(settings["models"][cell.model], "model")
    values |= _flat(settings["benchmarks"][cell.benchmark], "benchmark")
    chosen = {"layer": pruned["layer"], "fraction": pruned["fraction"], "neurons": len(pruned["neurons"])}
    return values | _flat(chosen, "pruned")


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: leaf for key, inner in value.items() for name, leaf in _flat(inner, f"{prefix}.{key}").items()}


def metrics(cell: Cell) -> dict[str, float]:
    """Results and resource use. Names are the same for every cell; without a transfer check its metrics are missing."""
    evaluation, pruned, transfer = (read_json(path) for path in (cell.evaluation, cell.pruned, cell.transfer))
    compared = measured(evaluation)
    values = {"n": evaluation["n"], "adaptation_accuracy": pruned["adaptation"]["accuracy"]}
    for prefix, measure in (("", compared["accuracy"]), ("exact_match_", compared["exact_match"])):
        versus_base = measure["pruned_vs_base"]
        values |= {f"{prefix}difference": versus_base["difference"], f"{prefix}p_value": versus_base["p"]}
        low, high = versus_base["interval"]
        values |= {f"{prefix}difference_stderr": versus_base["stderr"]}
        values |= {f"{prefix}difference_low": low, f"{prefix}difference_high": high}
    for name, system in evaluation["systems"].items():
        values |= {f"accuracy_{name}": system["accuracy"], f"stderr_{name}": system["stderr"]}
        values |= {f"exact_match_{name}": system["exact_match"]}
        values |= {f"exact_match_stderr_{name}": system["exact_match_stderr"]}
        if name != "random":
            values[f"acc_norm_{name}"] = system["acc_norm"]
    values |= {f"transfer_{name}": transfer.get(name) for name in ("spearman", "regret", "percentile")}
    for step, usage in _usages(cell).items():
        values |= {f"seconds_{step}": usage["seconds"], f"peak_gb_{step}": usage["peak_gb"]}
    return {name: float(value) for name, value in values.items() if value is not None}


def _usages(cell: Cell) -> dict[str, dict[str, Any]]:
    """Time and memory of the last run of each step on this machine; see `tasks.runtime.usage`."""
    return {path.stem: read_json(path) for path in sorted((cell.scratch / "timings").glob("*.json"))}


def system_metrics(cell: Cell) -> list[Any]:
    """The CPU and memory samples of all steps, under the names of MLflow's own system metrics."""
    from mlflow.entities import Metric

    samples = sorted(sample for usage in _usages(cell).values() for sample in usage["samples"])
    names = ("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes")
    return [
        Metric(name, value, when, step)
        for step, (when, *values) in enumerate(samples[-LAST_SAMPLES:])
        for name, value in zip(names, values, strict=True)
    ]


def git_tags(root: Path) -> dict[str, str]:
    """`git_commit`, and `git_dirty`: whether code or settings differ from it. Empty outside a git checkout."""

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


def dvc_tags(cell: Cell) -> dict[str, str]:
    """The MD5 in dvc.lock of every output of the cell; empty if the steps ran without DVC."""
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
