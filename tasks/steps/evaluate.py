"""evaluate: base, pruned and randomly pruned model on the held-out test rows."""

from functools import partial

import numpy as np

from tasks.benchmarks.scoring import Answers, answers_without, per_character
from tasks.benchmarks.table import Rows, encode_rows, exact_matches, read_split
from tasks.evidence.outcomes import summary
from tasks.evidence.statistics import standard_error
from tasks.method.neurons import random_neurons
from tasks.method.precision import settle_on_rows
from tasks.method.recipe import read_recipe
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.files import write_json, write_parquet
from tasks.runtime.progress import progress

SAMPLE = 32  # rows on which a lower precision is tested
NOTHING = np.array([], dtype=np.int64)


def evaluate(cell: Cell) -> None:
    """Writes the predictions of every system and their metrics. All systems run in the same batches."""
    recipe = read_recipe(cell.pruned)
    seeds = cell.settings.evaluation.control_seeds
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    table = read_split(cell.test, cell.benchmark_spec.limits.test)
    rows = encode_rows(table, loaded.tokenizer, stack.context)
    controls = [random_neurons(recipe.d_ff, len(recipe.neurons), seed) for seed in seeds]
    sets = [NOTHING, np.array(recipe.neurons), *controls]
    answer = partial(answers_without, stack, layer=recipe.layer, sets=sets, projection=recipe.projection)
    settled = settle_on_rows(
        cell.settings.precision.evaluate, lambda p: answer(rows.encoded[:SAMPLE], precision=p).predicted()
    )
    with progress("evaluate", len(table)) as advance:
        answers = answer(rows.encoded, precision=settled.precision, advance=advance)

    predicted = dict(zip(_systems(seeds), answers.predicted(), strict=True))
    margins = answers.margins(rows.gold)
    frame = table[["id", "prompt", "gold"]].assign(**predicted)
    for i, system in enumerate(_systems(seeds)):
        frame[f"{system}_exact"] = exact_matches(loaded.tokenizer, rows, answers, i)
    for i, system in enumerate(("base", "pruned")):
        frame[f"{system}_logprobs"] = [logprobs[i].tolist() for logprobs in answers.logprobs]
    write_parquet(cell.predictions, frame)
    result = summary(frame, table, seeds)
    for i, system in enumerate(("base", "pruned")):
        norm = float(np.mean(_normed(rows, answers, i)))
        result["systems"][system] |= {
            "mean_margin": float(margins[i].mean()),
            "acc_norm": norm,
            "acc_norm_stderr": standard_error(norm, len(table)),
        }
    write_json(cell.evaluation, result | {"precision": settled.as_json() | {"products": stack.products}})
    shown = {name: round(result["systems"][name]["accuracy"], 3) for name in ("base", "pruned")}
    write_json(cell.metrics, shown | {"p": float(f"{result['comparisons']['pruned_vs_base']['p']:.2g}")})


def _systems(seeds: list[int]) -> list[str]:
    return ["base", "pruned", *(f"random_{seed}" for seed in seeds)]


def _normed(rows: Rows, answers: Answers, system: int) -> list[bool]:
    """Whether the option with the largest log-probability per character is right."""
    columns = zip(answers.logprobs, rows.table["options"], rows.gold, strict=True)
    return [bool(per_character(logprobs[system], options).argmax() == gold) for logprobs, options, gold in columns]


if __name__ == "__main__":
    run_step(evaluate, description=__doc__)
