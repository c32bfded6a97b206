"""The smallest project with real dvc.yaml and steps: a model with random weights and 40 sentences."""

import compileall
import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from tasks.models.hashing import sha256_directory
from tasks.pipeline.cell import Cell, open_cell
from tasks.runtime.files import sha256_file
from tests.cells import pipeline
from tests.flows.stand_in_project import REAL, dvc
from tests.tiny import save_tiny

WORDS = ["good", "fine", "dull", "bad", "long", "short", "warm", "cold"]
NAME = "tiny-reviews"


def write_sources(root: Path) -> Cell:
    """params.yaml, the model's directory and the benchmark's file: what a project begins with."""
    root.mkdir(parents=True, exist_ok=True)
    save_tiny(root / "source")
    rng = np.random.default_rng(1)
    rows = [{"text": " ".join(rng.choice(WORDS, 3)) + f" {i}", "label": int(rng.integers(2))} for i in range(40)]
    (root / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "params.yaml").write_text(yaml.safe_dump(params(root), sort_keys=False))
    return open_cell(root=root)


def params(root: Path) -> dict:
    """The content of params.yaml for the files in `root`."""
    source = {"kind": "path", "path": "reviews.jsonl", "sha256": sha256_file(root / "reviews.jsonl")}
    return {
        "pipeline": pipeline(("tiny", "reviews")),
        "adaptation": {"size": 3, "seed": 0, "selection": "random"},
        "attribution": {"quadrature": "adaptive", "tolerance": 0.01, "max_nodes": 4},
        "search": {"fractions": [0.1, 0.4]},
        "evaluation": {"control_seeds": [0]},
        "precision": {"search": "float32", "evaluate": "float32", "transfer": "float32"},
        "studies": {},
        "nsa": {},
        "sparse": {},
        "models": {
            "tiny": {"source": {"kind": "path", "path": "source", "sha256": sha256_directory(root / "source")}},
        },
        "benchmarks": {
            "reviews": {
                "train": {"source": source, "gold": "{{ label }}"},
                "test": {"split": 12, "seed": 0},
                "prompt": "{{ text }} :",
                "options": [" no", " yes"],
                "labels": ["0", "1"],
                "limits": {"test": 12, "transfer": 4},
            }
        },
    }


def real_project(root: Path) -> Cell:
    """The sources, with the real pipeline and its code; without git. Nothing has run yet."""
    cell = write_sources(root)
    (root / ".dvc").mkdir()
    shutil.copy(REAL / ".dvc" / "config", root / ".dvc" / "config")
    for name in ("dvc.yaml", ".dvcignore"):  # without the second, DVC hashes byte code as code
        shutil.copy(REAL / name, root / name)
    for package in ("tasks", "flows"):
        shutil.copytree(REAL / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return cell


def finished_project(root: Path) -> Cell:
    """The same after all steps, with the dvc.lock and the cache of `dvc repro`. One process computes it all: imports
    take most of the time of a step here. A test takes a copy: the fixture `finished_root`.
    """
    from tasks.steps import data, evaluate, model, prune, report, sample, score, search, transfer

    cell = real_project(root)
    for step in (
        model.store, data.store, sample.sample, score.score, search.search, prune.prune, evaluate.evaluate,
        transfer.transfer, report.report,
    ):  # fmt: skip
        step(cell)
    dvc(root, "commit", "--force")
    compileall.compile_dir(root, quiet=1)  # once, and not in the first step of every copy
    return cell
