"""evaluate: base, pruned and randomly pruned model on the held-out test rows."""

from functools import partial

import numpy as np
import pandas as pd

from tasks.benchmarks.answering import Answering, Part, assemble_answers
from tasks.benchmarks.scoring import Answers, per_character
from tasks.benchmarks.table import encode_rows, read_split
from tasks.evidence.outcomes import summary
from tasks.evidence.statistics import standard_error
from tasks.method.neurons import random_neurons
from tasks.method.precision import settle_on_rows
from tasks.method.recipe import read_recipe
from tasks.models.hashing import recorded_hash
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.files import sha256_file, write_json, write_parquet
from tasks.runtime.journal import Journal, journal_key
from tasks.runtime.progress import progress
from tasks.runtime.work import run_parts, worker_pool

SAMPLE = 32  # rows on which a lower precision is tested
NOTHING = np.array([], dtype=np.int64)


def evaluate(cell: Cell) -> None:
    """Writes the predictions of every system and their metrics. All systems run in the same batches."""
    seeds = cell.settings.evaluation.control_seeds
    table = read_split(cell.test, cell.benchmark_spec.limits.test)
    inputs = [recorded_hash(cell.model_dir), *map(sha256_file, (cell.test, cell.pruned)), seeds, len(table)]
    with worker_pool(partial(answering, cell)) as workers:
        products = workers.attribute("products")
        journal = Journal(cell.scratch / "evaluate.jsonl", journal_key([*inputs, products]))
        packs, sampled = range(len(workers.attribute("sizes"))), range(workers.attribute("sampled"))
        run = partial(run_parts, workers, journal=journal)
        settled = settle_on_rows(
            cell.settings.precision.evaluate,
            lambda p: assemble_answers(run([Part(pack, p) for pack in sampled]))[0].predicted(),
        )
        with progress("evaluate", len(packs)) as advance:
            values = run([Part(pack, settled.precision) for pack in packs], advance=advance)
    answers, exact = assemble_answers(values)

    predicted = dict(zip(_systems(seeds), answers.predicted(), strict=True))
    margins = answers.margins(table["gold"].tolist())
    frame = table[["id", "prompt", "gold"]].assign(**predicted)
    for i, system in enumerate(_systems(seeds)):
        frame[f"{system}_exact"] = exact[i]
    for i, system in enumerate(("base", "pruned")):
        frame[f"{system}_logprobs"] = [logprobs[i].tolist() for logprobs in answers.logprobs]
    write_parquet(cell.predictions, frame)
    result = summary(frame, table, seeds)
    for i, system in enumerate(("base", "pruned")):
        norm = float(np.mean(_normed(table, answers, i)))
        result["systems"][system] |= {
            "mean_margin": float(margins[i].mean()),
            "acc_norm": norm,
            "acc_norm_stderr": standard_error(norm, len(table)),
        }
    write_json(cell.evaluation, result | {"precision": settled.as_json() | {"products": products}})
    shown = {name: round(result["systems"][name]["accuracy"], 3) for name in ("base", "pruned")}
    write_json(cell.metrics, shown | {"p": float(f"{result['comparisons']['pruned_vs_base']['p']:.2g}")})
    journal.remove()


def answering(cell: Cell) -> Answering:
    """The base, the pruned and the randomly pruned models on the test rows."""
    recipe, loaded = read_recipe(cell.pruned), load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(read_split(cell.test, cell.benchmark_spec.limits.test), loaded.tokenizer, stack.context)
    controls = [
        random_neurons(recipe.d_ff, len(recipe.neurons), seed) for seed in cell.settings.evaluation.control_seeds
    ]
    sets = [NOTHING, np.array(recipe.neurons), *controls]
    return Answering(stack, loaded.tokenizer, rows, [(recipe.layer, sets)], recipe.projection, SAMPLE)


def _systems(seeds: list[int]) -> list[str]:
    return ["base", "pruned", *(f"random_{seed}" for seed in seeds)]


def _normed(table: pd.DataFrame, answers: Answers, system: int) -> list[bool]:
    """Whether the option with the largest log-probability per character is right."""
    columns = zip(answers.logprobs, table["options"], table["gold"], strict=True)
    return [bool(per_character(logprobs[system], options).argmax() == gold) for logprobs, options, gold in columns]


if __name__ == "__main__":
    run_step(evaluate, description=__doc__)
