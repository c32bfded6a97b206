"""What a run of MLflow says of a cell: parameters, metrics, use of the machine, and the state of git and DVC."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tasks.evidence.verdict import measured
from tasks.pipeline.cell import Cell
from tasks.runtime.files import read_json

# What `git_dirty` is about; not dvc.lock and files of data.
CODE_AND_SETTINGS = ("tasks", "flows", "dvc.yaml", "params.yaml", "pyproject.toml", "constraints.txt")
LAST_SAMPLES = 450  # of the machine's use, twice as many metrics: a call of MLflow takes a thousand


def parameters(cell: Cell, pruned: dict[str, Any]) -> dict[str, Any]:
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


def metrics(cell: Cell) -> dict[str, float]:
    """The same names for every cell; those of the transfer check only where there was one, NaN nowhere."""
    evaluation, pruned, transfer = (read_json(path) for path in (cell.evaluation, cell.pruned, cell.transfer))
    compared = measured(evaluation)
    found = {"n": evaluation["n"], "adaptation_accuracy": pruned["adaptation"]["accuracy"]}
    for prefix, measure in (("", compared["accuracy"]), ("exact_match_", compared["exact_match"])):
        versus_base = measure["pruned_vs_base"]
        found |= {f"{prefix}difference": versus_base["difference"], f"{prefix}p_value": versus_base["p"]}
        low, high = versus_base["interval"]
        found |= {f"{prefix}difference_stderr": versus_base["stderr"]}
        found |= {f"{prefix}difference_low": low, f"{prefix}difference_high": high}
    for name, system in evaluation["systems"].items():
        found |= {f"accuracy_{name}": system["accuracy"], f"stderr_{name}": system["stderr"]}
        found |= {f"exact_match_{name}": system["exact_match"]}
        found |= {f"exact_match_stderr_{name}": system["exact_match_stderr"]}
        if name != "random":
            found[f"acc_norm_{name}"] = system["acc_norm"]
    found |= {f"transfer_{name}": transfer.get(name) for name in ("spearman", "regret", "percentile")}
    for step, usage in _usages(cell).items():
        found |= {f"seconds_{step}": usage["seconds"], f"peak_gb_{step}": usage["peak_gb"]}
    return {name: float(value) for name, value in found.items() if value is not None}


def _usages(cell: Cell) -> dict[str, dict[str, Any]]:
    """What each step took when it last ran on this machine: see `tasks.runtime.usage`."""
    return {path.stem: read_json(path) for path in sorted((cell.scratch / "timings").glob("*.json"))}


def system_metrics(cell: Cell) -> list[Any]:
    """The samples of all steps under the names that MLflow gives its own, so that its page of them shows them."""
    from mlflow.entities import Metric

    samples = sorted(sample for usage in _usages(cell).values() for sample in usage["samples"])
    names = ("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes")
    return [
        Metric(name, value, when, step)
        for step, (when, *values) in enumerate(samples[-LAST_SAMPLES:])
        for name, value in zip(names, values, strict=True)
    ]


def git_tags(root: Path) -> dict[str, str]:
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


def dvc_tags(cell: Cell) -> dict[str, str]:
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
