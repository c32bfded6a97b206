"""versus: compare a changed model with its base on test rows, for `dsm evaluate`; not a stage of DVC."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.benchmarks.prepare import prepare
from tasks.benchmarks.scoring import Answers, answers_unedited, answers_without, per_character
from tasks.benchmarks.table import Rows, encode_rows, exact_matches, read_split
from tasks.evidence.statistics import mcnemar, standard_error
from tasks.models.loading import Loaded, load
from tasks.models.stack import DecoderStack
from tasks.pipeline.settings import Settings, load_settings
from tasks.pipeline.sides import Sides, find_sides
from tasks.pipeline.step import run_main
from tasks.pipeline.wanted import spec_of, wanted_benchmark
from tasks.runtime.errors import InputError
from tasks.runtime.files import write_json
from tasks.sparsity.sparse_recipe import apply_recipe

NOTHING = np.array([], dtype=np.int64)


@dataclass(frozen=True)
class Outcome:
    """Correctness of one model on n rows, bool [n] each.

    Attributes:
        right: of the most probable option.
        normed: of the most probable option per character.
        exact: of the exact match.
    """

    right: npt.NDArray[np.bool_]
    normed: npt.NDArray[np.bool_]
    exact: npt.NDArray[np.bool_]

    def summary(self) -> dict[str, float]:
        n, values = len(self.right), {}
        for name, hits in (("accuracy", self.right), ("acc_norm", self.normed), ("exact_match", self.exact)):
            values[name] = float(hits.mean())
            values[f"{name}_stderr"] = standard_error(values[name], n)
        return values


def rows_for(wanted: str | None, settings: Settings, root: Path, limit: int | None) -> tuple[str, pd.DataFrame]:
    """The name of a benchmark and its test rows: those of the pipeline if they exist; otherwise they are prepared."""
    text = wanted or next(iter(settings.pipeline.benchmarks), None)
    if text is None:
        raise InputError("benchmark", "is missing: the model does not say which one it was made for; name one")
    benchmark = wanted_benchmark(text, settings, root)
    spec = spec_of(benchmark, settings)
    stored = root / "data" / "benchmarks" / benchmark.name / "test.parquet"
    if (
        benchmark.entry is None
        and not benchmark.pins
        and benchmark.name in settings.pipeline.benchmarks
        and stored.is_file()
    ):
        return benchmark.name, read_split(stored, limit or spec.limits.test)
    return benchmark.name, prepare(benchmark.name, spec, root).test.head(limit or spec.limits.test)


def compare(sides: Sides, table: pd.DataFrame) -> dict[str, Any]:
    """Both models on the same rows: accuracies, exact match, and paired tests of the differences."""
    systems: dict[str, Outcome] = {}
    if sides.base is not None:
        loaded = load(sides.base)
        stack = DecoderStack(loaded.model)
        rows = encode_rows(table, loaded.tokenizer, stack.context)
        if sides.recipe is not None:
            recipe = sides.recipe
            if recipe.layers != len(stack) or recipe.d_ff != stack.width(recipe.projection):
                raise InputError("model", "the recipe is for a model of a different shape from its base")
            sets = [NOTHING, np.array(recipe.neurons, dtype=np.int64)]
            answers = answers_without(stack, rows.encoded, recipe.layer, sets, projection=recipe.projection)
            systems = {name: _outcome(loaded, rows, answers, i) for i, name in enumerate(("base", "model"))}
        else:
            systems["base"] = _outcome(loaded, rows, answers_unedited(stack, rows.encoded), 0)
        if sides.sparse is not None:
            apply_recipe(loaded, sides.base, sides.sparse)
            stack = DecoderStack(loaded.model)
            systems["model"] = _outcome(loaded, rows, answers_unedited(stack, rows.encoded), 0)
        del loaded, stack
    if sides.weights is not None:
        loaded = load(sides.weights)
        stack = DecoderStack(loaded.model)
        rows = encode_rows(table, loaded.tokenizer, stack.context, warn=sides.base is None)
        systems["model"] = _outcome(loaded, rows, answers_unedited(stack, rows.encoded), 0)
    results: dict[str, Any] = {"n": len(table), "systems": {name: one.summary() for name, one in systems.items()}}
    if "base" in systems:
        pairs = {"accuracy": "right", "acc_norm": "normed", "exact_match": "exact"}
        results["model_vs_base"] = {
            name: mcnemar(getattr(systems["model"], field), getattr(systems["base"], field))
            for name, field in pairs.items()
        }
    return results


def _outcome(loaded: Loaded, rows: Rows, answers: Answers, which: int) -> Outcome:
    gold = np.array(rows.gold)
    normed = [
        per_character(logprobs[which], options).argmax()
        for logprobs, options in zip(answers.logprobs, rows.table["options"], strict=True)
    ]
    return Outcome(
        right=answers.predicted()[which] == gold,
        normed=np.array(normed) == gold,
        exact=exact_matches(loaded.tokenizer, rows, answers, which),
    )


def main(arguments: argparse.Namespace, root: Path) -> None:
    settings = load_settings(root)
    sides = find_sides(arguments.model, arguments.base, settings, root)
    name, table = rows_for(arguments.benchmark or sides.benchmark, settings, root, arguments.limit)
    results = compare(sides, table) | {
        "model": sides.name,
        "base": None if sides.base is None else str(sides.base).removeprefix(f"{root}/"),
        "benchmark": name,
    }
    write_json(arguments.out, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tasks.steps.versus", description=__doc__)
    parser.add_argument("model", help="a recipe, a directory, or the name of a cell or a model")
    parser.add_argument("--benchmark")
    parser.add_argument("--base")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, required=True)
    run_main("versus", lambda: main(parser.parse_args(), Path.cwd()))
