"""Summaries of predictions and grids on test rows: accuracies, paired tests, and how well the choice transfers."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.evidence.statistics import mcnemar, spearman, standard_error
from tasks.method.pairs import UNPRUNED
from tasks.method.recipe import Recipe


def summary(frame: pd.DataFrame, table: pd.DataFrame, seeds: list[int]) -> dict[str, Any]:
    """Accuracies, exact matches, counts and paired tests, from the predictions on n rows.

    Args:
        frame: n rows with `gold` and, for each system (base, pruned, random_SEED), the predicted option `SYSTEM` and
            whether the text that the model writes is the right option, `SYSTEM_exact`.
        table: the same rows with their `options`.
        seeds: of the random controls.
    """
    n, gold = len(frame), frame["gold"].to_numpy()
    random = [f"random_{seed}" for seed in seeds]
    right = {name: frame[name].to_numpy() == gold for name in ["base", "pruned", *random]}
    exact = {name: frame[f"{name}_exact"].to_numpy(dtype=bool) for name in right}
    width = max(map(len, table["options"]))
    shared = table["options"].map(tuple).nunique() == 1

    def rates(accuracy: float, exact_match: float) -> dict[str, float]:
        return {
            "accuracy": accuracy,
            "stderr": standard_error(accuracy, n),
            "exact_match": exact_match,
            "exact_match_stderr": standard_error(exact_match, n),
        }

    def counts(name: str) -> list[int]:
        return [int(number) for number in np.bincount(frame[name], minlength=width)]

    def system(name: str) -> dict[str, Any]:
        confusion = np.zeros((width, width), dtype=int)
        np.add.at(confusion, (gold, frame[name].to_numpy()), 1)
        own_rates = rates(float(right[name].mean()), float(exact[name].mean()))
        return own_rates | {"predicted": counts(name), "confusion": confusion.tolist()}

    def compared(answers: dict[str, npt.NDArray[np.bool_]]) -> dict[str, Any]:
        return {
            "pruned_vs_base": mcnemar(answers["pruned"], answers["base"]),
            "pruned_vs_random": {
                str(seed): mcnemar(answers["pruned"], answers[name]) for seed, name in zip(seeds, random, strict=True)
            },
        }

    by_seed = {str(seed): float(right[name].mean()) for seed, name in zip(seeds, random, strict=True)}
    exact_by_seed = {str(seed): float(exact[name].mean()) for seed, name in zip(seeds, random, strict=True)}
    return {
        "n": n,
        "options": list(table["options"].iloc[0]) if shared else None,
        "systems": {
            "base": system("base"),
            "pruned": system("pruned"),
            "random": {
                **rates(float(np.mean(list(by_seed.values()))), float(np.mean(list(exact_by_seed.values())))),
                "between_seeds": float(np.std(list(by_seed.values()), ddof=1)) if len(seeds) > 1 else None,
                "by_seed": by_seed,
                "exact_match_by_seed": exact_by_seed,
                "predicted": {str(seed): counts(name) for seed, name in zip(seeds, random, strict=True)},
            },
        },
        "comparisons": compared(right) | {"exact_match": compared(exact)},
    }


def compare_grids(adaptation: pd.DataFrame, test: pd.DataFrame, recipe: Recipe, n: int) -> dict[str, Any]:
    """Rank correlation of the two surfaces, and how the chosen pair stands on the test surface.

    Returns:
        `spearman`, `spearman_p`: over all pairs; None if all accuracies of a surface are equal.
        `regret`: the best test accuracy minus that of the chosen pair.
        `percentile`: the share in % of the pairs whose test accuracy is at most that of the chosen pair.
        `chosen`, `best`: these two pairs with their test accuracy. `base_accuracy`: that of the unpruned model.
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
