"""What predictions and grids on test rows come to: accuracies, paired tests, and how far the choice transfers."""

import math
from typing import Any

import numpy as np
import pandas as pd

from tasks.evidence.statistics import mcnemar, spearman, standard_error
from tasks.method.grid import UNPRUNED
from tasks.method.recipe import Recipe


def summary(frame: pd.DataFrame, table: pd.DataFrame, seeds: list[int]) -> dict[str, Any]:
    """Accuracies with their standard errors, counts, and paired tests, from the predictions on n rows."""
    n, gold = len(frame), frame["gold"].to_numpy()
    right = {name: frame[name].to_numpy() == gold for name in ["base", "pruned", *(f"random_{seed}" for seed in seeds)]}
    width = max(map(len, table["options"]))
    shared = table["options"].map(tuple).nunique() == 1

    def counts(name: str) -> list[int]:
        return [int(number) for number in np.bincount(frame[name], minlength=width)]

    def system(name: str) -> dict[str, Any]:
        accuracy, exact = float(right[name].mean()), float(frame[f"{name}_exact"].mean())
        confusion = np.zeros((width, width), dtype=int)
        np.add.at(confusion, (gold, frame[name].to_numpy()), 1)
        return {
            "accuracy": accuracy,
            "stderr": standard_error(accuracy, n),
            "exact_match": exact,
            "exact_match_stderr": standard_error(exact, n),
            "predicted": counts(name),
            "confusion": confusion.tolist(),
        }

    by_seed = {str(seed): float(right[f"random_{seed}"].mean()) for seed in seeds}
    mean = float(np.mean(list(by_seed.values())))
    return {
        "n": n,
        "options": list(table["options"].iloc[0]) if shared else None,
        "systems": {
            "base": system("base"),
            "pruned": system("pruned"),
            "random": {
                "accuracy": mean,
                "stderr": standard_error(mean, n),
                "between_seeds": float(np.std(list(by_seed.values()), ddof=1)) if len(seeds) > 1 else None,
                "by_seed": by_seed,
                "predicted": {str(seed): counts(f"random_{seed}") for seed in seeds},
            },
        },
        "comparisons": {
            "pruned_vs_base": mcnemar(right["pruned"], right["base"]),
            "pruned_vs_random": {str(seed): mcnemar(right["pruned"], right[f"random_{seed}"]) for seed in seeds},
        },
    }


def compare_grids(adaptation: pd.DataFrame, test: pd.DataFrame, recipe: Recipe, n: int) -> dict[str, Any]:
    """Rank correlation of the two surfaces, and how the chosen pair stands on the test surface.

    Returns:
        `spearman` and its p over all pairs (None where a surface is flat); `regret`, the best test accuracy minus that
        of the chosen pair; `percentile`, the share in % of the pairs whose test accuracy is at most the chosen one's.
    """
    both = adaptation.merge(test, on=["layer", "fraction"], suffixes=("_adaptation", ""), validate="one_to_one")
    pairs = both[both.layer != UNPRUNED]
    rho, p = spearman(pairs.accuracy_adaptation, pairs.accuracy)
    chosen = pairs[(pairs.layer == recipe.layer) & (pairs.fraction == recipe.fraction)].iloc[0]
    best = pairs.sort_values("accuracy", ascending=False, kind="stable").iloc[0]
    return {
        "n": n,
        "spearman": None if math.isnan(rho) else rho,
        "spearman_p": None if math.isnan(p) else p,
        "regret": float(best.accuracy - chosen.accuracy),
        "percentile": float(100 * (pairs.accuracy <= chosen.accuracy).mean()),
        "chosen": _pair(chosen),
        "best": _pair(best),
        "base_accuracy": float(both[both.layer == UNPRUNED].iloc[0].accuracy),
    }


def _pair(row: Any) -> dict[str, Any]:
    return {"layer": int(row.layer), "fraction": float(row.fraction), "accuracy": float(row.accuracy)}
