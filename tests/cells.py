"""A finished cell with random numbers, with the files and formats of a real one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors.numpy import save_file

from tasks.evidence.outcomes import summary
from tasks.evidence.statistics import spearman
from tasks.pipeline.cell import Cell, open_cell
from tasks.runtime.files import read_json, write_json, write_jsonl, write_parquet, write_text

FRACTIONS = [0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40]
OPTIONS = [" negative", " positive"]
SHA = "0123456789abcdef" * 4


def pipeline(*cells: tuple[str, str]) -> dict[str, Any]:
    """The section `pipeline` of params.yaml with these cells, each a model and a benchmark."""
    return {
        "models": sorted({model for model, _ in cells}),
        "benchmarks": sorted({benchmark for _, benchmark in cells}),
        "cells": {f"{model}-{benchmark}": {"model": model, "benchmark": benchmark} for model, benchmark in cells},
    }


def settings(*, transfer: int = 40) -> dict[str, Any]:
    """The content of a params.yaml with one cell: `tiny` on `reviews`."""
    source = {"kind": "path", "path": "reviews.csv", "sha256": SHA}
    return {
        "pipeline": pipeline(("tiny", "reviews")),
        "adaptation": {"size": 10, "seed": 0, "selection": "random"},
        "attribution": {"quadrature": "adaptive", "steps": 20, "tolerance": 0.01, "max_nodes": 32},
        "search": {"fractions": FRACTIONS},
        "evaluation": {"control_seeds": [0, 1, 2]},
        "precision": {"search": "float32", "evaluate": "float32", "transfer": "float32"},
        "studies": {},
        "nsa": {},
        "sparse": {},
        "models": {"tiny": {"licence": "Apache-2.0", "source": {"kind": "path", "path": "tiny", "sha256": SHA}}},
        "benchmarks": {
            "reviews": {
                "train": {"source": source, "fields": {"text": "{{ text }}"}, "gold": "{{ label }}"},
                "test": {"split": 60, "seed": 0},
                "prompt": "Is this positive or negative?\n\n{{ text }}\n\nAnswer:",
                "options": OPTIONS,
                "labels": ["0", "1"],
                "limits": {"test": 60, "transfer": transfer},
                "licence": "CC0",
            }
        },
    }


def write_cell(
    root: Path,
    *,
    shift: float = 1.0,
    n: int = 60,
    transfer: bool = True,
    per_row: bool = False,
    layers: int = 6,
    d_ff: int = 40,
    text: str = "a film about film {i}",
) -> Cell:
    """Writes all files of a cell that `transfer` has finished, and params.yaml, under `root`.

    Args:
        shift: how far pruning moves the log-probabilities toward the gold option; negative: away from it.
        transfer: False is a cell with limits.transfer = 0.
        per_row: options that differ from row to row.
        text: of every row; `{i}` becomes its number.
    """
    rng = np.random.default_rng(0)
    write_text(root / "params.yaml", yaml.safe_dump(settings(transfer=40 if transfer else 0)))
    cell = open_cell("tiny", "reviews", root)

    def prompt(i: int) -> str:
        return f"Is this positive or negative?\n\n{text.replace('{i}', str(i))}\n\nAnswer:"

    def options(i: int) -> list[str]:
        return [f" no {i}", f" yes {i}", f" maybe {i}"] if per_row else OPTIONS

    count = len(options(0))
    samples = [
        {"id": f"train-{i}", "prompt": prompt(1000 + i), "options": options(i), "gold": int(rng.integers(count))}
        for i in range(10)
    ]
    write_jsonl(cell.samples, samples)
    write_jsonl(cell.unlabeled, [{"id": f"train-{i}", "prompt": prompt(i), "options": options(i)} for i in range(30)])
    write_json(
        cell.preflight, {"n": 40, "labeled": 10, "accuracy": 0.6, "predicted": [26, 14], "options": list(OPTIONS)}
    )
    header = {
        "method": "integrated gradients", "path": "layer", "quadrature": "adaptive", "tolerance": 0.01,
        "target": "largest logit", "samples_sha256": SHA, "model_sha256": SHA, "n": 10,
    }  # fmt: skip
    gap = rng.normal(0, 0.002, layers).astype(np.float32)
    gap[1] = 3.0  # a layer that did not converge
    cell.scores.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "scores": rng.standard_t(2, (layers, d_ff)).astype(np.float32),
            "gap": gap,
            "error": np.abs(gap),
            "difference": rng.normal(0, 4, layers).astype(np.float32),
            "nodes": rng.integers(4, 65, layers).astype(np.int32),
        },
        cell.scores,
        metadata={"header": json.dumps(header)},
    )
    layer, fraction = 2, 0.10
    neurons = sorted(int(j) for j in rng.choice(d_ff, int(fraction * d_ff + 0.5), replace=False))
    write_parquet(cell.grid, _grid(rng, layers, d_ff, 10))
    base, after, random = (_logprobs(rng, n, count) for _ in range(3))
    gold = rng.integers(count, size=n)
    after = base + shift * np.eye(count)[gold]
    frame = pd.DataFrame(
        {
            "id": [f"test-{i}" for i in range(n)], "prompt": [prompt(i) for i in range(n)], "gold": gold,
            "base": base.argmax(1), "pruned": after.argmax(1),
            **{f"random_{seed}": (base + 0.3 * np.roll(random, seed, 0)).argmax(1) for seed in range(3)},
            "base_logprobs": list(base.astype(np.float32)), "pruned_logprobs": list(after.astype(np.float32)),
        }
    )  # fmt: skip
    _write_exact(frame)
    write_parquet(cell.predictions, frame)
    write_json(cell.evaluation, evaluation(frame, [options(i) for i in range(n)]))
    write_json(
        cell.pruned,
        {
            "format": 1, "model": "tiny", "benchmark": "reviews", "base_sha256": SHA, "projection": "gate_proj",
            "layer": layer, "fraction": fraction, "layers": layers, "d_ff": d_ff, "neurons": neurons,
            "adaptation": {"n": 10, "accuracy": 0.9, "margin": 0.41, "base_accuracy": 0.6, "base_margin": 0.1},
            "trail": [
                {"rule": "accuracy", "best": 0.9, "tied": 5}, {"rule": "mean gold margin", "best": 0.41, "tied": 2},
                {"rule": "smaller fraction", "best": 0.10, "tied": 1},
            ],
        },
    )  # fmt: skip
    tested = _grid(rng, layers, d_ff, 40)
    write_parquet(cell.transfer_grid, tested if transfer else tested.iloc[:0])
    write_json(cell.transfer, _transfer(cell, tested) if transfer else {"n": 0})
    return cell


def _logprobs(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    logits = rng.normal(0, 1, (n, count))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)) - 1


def _grid(rng: np.random.Generator, layers: int, d_ff: int, n: int) -> pd.DataFrame:
    rows = [(-1, 0.0, 0, 0.6, 0.1)]
    rows += [
        (layer, f, int(f * d_ff + 0.5), rng.integers(n + 1) / n, rng.normal(0.1, 0.5))
        for layer in range(layers)
        for f in FRACTIONS
    ]
    return pd.DataFrame(rows, columns=["layer", "fraction", "neurons", "accuracy", "margin"])


def _write_exact(frame: pd.DataFrame) -> None:
    """Adds the columns of exact matches: the pruned model writes its option more often than the other models."""
    writes = np.random.default_rng(1).random(len(frame))
    for name, share in {"base": 0.2, "pruned": 0.8, **{f"random_{seed}": 0.3 for seed in range(3)}}.items():
        frame[f"{name}_exact"] = (frame[name] == frame["gold"]) & (writes < share)


def evaluation(frame: pd.DataFrame, options: list[list[str]]) -> dict[str, Any]:
    """evaluation.json of these predictions, with made-up margins and acc_norm."""
    found = summary(frame, pd.DataFrame({"options": options}), [0, 1, 2])
    for system in ("base", "pruned"):
        found["systems"][system] |= {"mean_margin": 0.2, "acc_norm": 0.55, "acc_norm_stderr": 0.064}
    found["precision"] = {"precision": "float32", "predictions": None, "agreement": None, "same_choice": None}
    return found


def _transfer(cell: Cell, tested: pd.DataFrame) -> dict[str, Any]:
    pairs = tested[tested["layer"] >= 0]
    recipe = read_json(cell.pruned)
    chosen = pairs[(pairs["layer"] == recipe["layer"]) & (pairs["fraction"] == recipe["fraction"])].iloc[0]
    best = pairs.loc[pairs["accuracy"].idxmax()]
    rank, p = spearman(pd.read_parquet(cell.grid).query("layer >= 0")["accuracy"], pairs["accuracy"])

    def pair(row: pd.Series) -> dict[str, Any]:
        return {
            "layer": int(row["layer"]), "fraction": float(row["fraction"]), "accuracy": float(row["accuracy"])
        }  # fmt: skip

    return {
        "n": 40, "spearman": rank, "spearman_p": p, "regret": float(best["accuracy"] - chosen["accuracy"]),
        "percentile": float(100 * (pairs["accuracy"] <= chosen["accuracy"]).mean()), "base_accuracy": 0.6,
        "chosen": pair(chosen), "best": pair(best),
        "precision": {"precision": "bfloat16", "predictions": 3840, "agreement": 0.9985, "same_choice": True},
    }  # fmt: skip


def servable_cell(root: Path) -> Cell:
    """A finished cell of a tiny random Llama: predictions.parquet holds what the pruned model answers."""
    from tasks.benchmarks.scoring import option_logprobs
    from tasks.models.hashing import sha256_directory
    from tasks.models.loading import load
    from tasks.tracking.export import apply
    from tests.tiny import SIZES, save_tiny

    cell = write_cell(root, layers=SIZES["num_hidden_layers"], d_ff=SIZES["intermediate_size"], n=20)
    save_tiny(cell.model_dir)
    write_json(cell.pruned, read_json(cell.pruned) | {"base_sha256": sha256_directory(cell.model_dir)})
    frame = pd.read_parquet(cell.predictions)
    apply(cell.pruned, cell.model_dir, root / "edited")
    for name, directory in (("base", cell.model_dir), ("pruned", root / "edited")):
        logprobs = option_logprobs(load(directory), frame["prompt"].tolist(), [OPTIONS] * len(frame))
        frame[name] = [int(row.argmax()) for row in logprobs]
        frame[f"{name}_logprobs"] = [row.tolist() for row in logprobs]
    write_parquet(cell.predictions, frame)
    write_json(cell.evaluation, evaluation(frame, [OPTIONS] * len(frame)))
    write_json(
        cell.scratch / "timings" / "score.json", {"seconds": 1.5, "peak_gb": 0.5, "samples": [[1000, 50.0, 900.0]]}
    )
    write_text(cell.report, "<p>report</p>")
    return cell
