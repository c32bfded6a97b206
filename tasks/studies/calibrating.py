"""Study `calibration`: how much does weight pruning depend on its calibration set (2503.01542)?

Every method x sparsity x calibration set on the cell's test rows, with the unpruned model. The calibration sets are
text files (WikiText-2, C4), the cell's train prompts (`own`), and those of other benchmarks. DSM pruning is in the
same table, on several draws of its examples as calibration sets.

With `covering`, each set is drawn `seeds` times as the first sequences of a pool, beside as many sequences that are
chosen from the same pool to cover its activations (`tasks.sparsity.coverage`).
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np

from tasks.benchmarks.scoring import Answers, answers_unedited
from tasks.runtime.files import existing_path
from tasks.sparsity.calibration import Calibration, encode_prompts, from_prompts, from_texts, read_texts
from tasks.sparsity.coverage import POOL, covering
from tasks.sparsity.weight_pruning import Method, sparse
from tasks.studies.context import Record, StudyContext, accuracy_record, counts, pair_columns

OWN = "own"
DSM = "DSM"
LENGTH = 512  # tokens of a calibration sequence
PROMPTS = 32  # train prompts read for each sequence
COVERING = "covering"


def parts(context: StudyContext) -> list[str]:
    """`method|sparsity|set`, with the set `none` for magnitude; `DSM|seed`.

    With `covering` instead `method|sparsity|set|seed`, and `method|sparsity|set|seed|covering` for the chosen ones.
    """
    run = context.run
    sets = [*run.texts, OWN, *run.benchmarks]
    if run.covering:
        draws = [f"{name}|{seed}{how}" for name in sets for seed in range(run.seeds) for how in ("", f"|{COVERING}")]
    else:
        draws = sets
    weights = [
        f"{method}|{sparsity}|{name}"
        for method in run.methods
        for sparsity in run.sparsities
        for name in (["none"] if method == "magnitude" else draws)
    ]
    return ["unpruned", *(f"{DSM}|{seed}" for seed in range(run.seeds)), *weights]


def compute(context: StudyContext, part: str) -> list[Record]:
    """The accuracy of one pruned model."""
    if part == "unpruned":
        right = context.correct(context.base)
        return [accuracy_record("unpruned", right, None, **_answered(context, context.base))]
    if part.startswith(DSM):
        return [_dsm(context, int(part.split("|")[1]))]
    method, sparsity, name, *draw = part.split("|")
    calibration = None if name == "none" else _calibration(context, name, draw)
    sequences = calibration.sequences if calibration else []
    with sparse(context.loaded, sequences, cast(Method, method), float(sparsity)):
        answers = answers_unedited(context.stack, context.test.encoded)
    suffix = "".join((f", seed {draw[0]}" if draw else "", *(f", {how}" for how in draw[1:])))
    described = f"{name}, {len(sequences)} × {calibration.length}{suffix}" if calibration else "none"
    kind = f"{method}, {COVERING}" if draw[1:] else method
    more = {"method": kind, "sparsity": float(sparsity), "calibration set": described} | _answered(context, answers)
    label = f"{method}, {float(sparsity):.0%}, {name}{suffix}"
    return [accuracy_record(label, context.correct(answers), context.correct(context.base), group=method, **more)]


def _dsm(context: StudyContext, seed: int) -> Record:
    adaptation = context.settings.adaptation.model_copy(update={"seed": seed})
    draw = f"{adaptation.size} examples, seed {seed}"
    more: dict[str, Any] = {"method": "DSM pruning", "sparsity": "", "calibration set": draw}
    recipe, seconds = context.adapt(adaptation)
    answers = context.answers(recipe)
    right, base = context.correct(answers), context.correct(context.base)
    more |= pair_columns(recipe, seconds) | _answered(context, answers)
    return accuracy_record(f"DSM pruning, {draw}", right, base, group="DSM pruning", **more)


def _answered(context: StudyContext, answers: Answers) -> dict[str, Any]:
    """Finer measures than accuracy: the predicted options, and the mean gold margin."""
    margin = float(answers.margins(context.test.gold)[0].mean())
    return {"answers": counts(answers), "margin": round(margin, 4)}


def spreads(records: list[Record]) -> list[Record]:
    """Adds the spread of accuracy over the calibration sets to the last record of each method and sparsity."""
    result: list[Record] = []
    for record in records:
        key = record.more.get("method"), record.more.get("sparsity")
        same = [r for r in records if (r.more.get("method"), r.more.get("sparsity")) == key]
        values = [r.value for r in same if r.value is not None]
        if key[0] and len(values) > 1 and record is same[-1]:
            spread = round(max(values) - min(values), 3)
            record = Record(**vars(record) | {"more": record.more | {"spread over sets": spread}})
        result.append(record)
    return result


def paired(records: list[Record]) -> list[Record]:
    """`spreads`, and in the last record of each method, sparsity and set with a choice the accuracy of the chosen
    sequences minus that of the random draw from the same pool: mean over the pools and its standard error."""
    records = spreads(records)
    drawn = {record.label: record.value for record in records}
    differences: dict[str, list[float]] = {}
    last: dict[str, int] = {}
    for number, record in enumerate(records):
        random, how, _ = record.label.rpartition(f", {COVERING}")
        if how:
            key = random.rpartition(", seed ")[0]
            differences.setdefault(key, []).append(cast(float, record.value) - cast(float, drawn[random]))
            last[key] = number
    for key, number in last.items():
        deltas = np.array(differences[key])
        error = f" ± {deltas.std(ddof=1) / len(deltas) ** 0.5:.3f}" if len(deltas) > 1 else ""
        more = records[number].more | {f"{COVERING} - random": f"{deltas.mean():+.3f}{error}"}
        records[number] = Record(**vars(records[number]) | {"more": more})
    return records


def _calibration(context: StudyContext, name: str, draw: list[str]) -> Calibration:
    """A set as a part names it: without a draw, of this seed, or covering the pool of this seed."""
    if not draw:
        return calibration_set(context, name)
    key = "|".join([name, *draw])
    if key not in context.calibrations:  # choosing needs a pass of the whole pool, and methods share the choice
        count = context.run.sequences
        pool = calibration_set(context, name, seed=int(draw[0]), size=POOL)
        chosen = covering(context.loaded, pool, count) if draw[1:] else replace(pool, sequences=pool.sequences[:count])
        context.calibrations[key] = chosen
    return context.calibrations[key]


def calibration_set(context: StudyContext, name: str, *, seed: int = 0, size: int = 1) -> Calibration:
    """The calibration set of this name.

    Args:
        seed: of the draw.
        size: sequences for each of the study's `sequences`; above 1 for a pool.

    Raises:
        InputError: there are too few texts or prompts.
    """
    run, tokenizer, count = context.run, context.loaded.tokenizer, context.run.sequences * size
    if name in run.texts:
        texts = read_texts(
            existing_path(run.texts[name], field=f"studies.{run.name}.texts.{name}", root=context.cell.root)
        )
        return from_texts(tokenizer, texts, name=name, count=count, length=LENGTH, seed=seed)
    train = context.train if name == OWN else context.rows_of(name)[0]
    prompts = encode_prompts(train.head(count * PROMPTS), tokenizer, context.stack.context)
    return from_prompts(prompts, name=name, count=count, length=LENGTH, seed=seed, fewer=True)
