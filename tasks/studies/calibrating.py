"""Study `calibration`: how much does weight pruning depend on its calibration set (2503.01542)?

Every method x sparsity x calibration set on the cell's test rows, with the unpruned model. The calibration sets are
text files (WikiText-2, C4), the cell's train prompts (`own`), and those of other benchmarks. DSM pruning is in the
same table, on several draws of its examples as calibration sets.
"""

from typing import Any, cast

from tasks.benchmarks.scoring import Answers, answers_unedited
from tasks.runtime.files import existing_path
from tasks.sparsity.calibration import Calibration, encode_prompts, from_prompts, from_texts, read_texts
from tasks.sparsity.weight_pruning import Method, sparse
from tasks.studies.context import Record, StudyContext, accuracy_record, counts, pair_columns

OWN = "own"
DSM = "DSM"
LENGTH = 512  # tokens of a calibration sequence
PROMPTS = 32  # train prompts read for each sequence


def parts(context: StudyContext) -> list[str]:
    """`method|sparsity|set`, with the set `none` for magnitude; `DSM|seed`."""
    run = context.run
    sets = [*run.texts, OWN, *run.benchmarks]
    weights = [
        f"{method}|{sparsity}|{name}"
        for method in run.methods
        for sparsity in run.sparsities
        for name in (["none"] if method == "magnitude" else sets)
    ]
    return ["unpruned", *(f"{DSM}|{seed}" for seed in range(run.seeds)), *weights]


def compute(context: StudyContext, part: str) -> list[Record]:
    """The accuracy of one pruned model."""
    if part == "unpruned":
        right = context.correct(context.base)
        return [accuracy_record("unpruned", right, None, **_answered(context, context.base))]
    if part.startswith(DSM):
        return [_dsm(context, int(part.split("|")[1]))]
    method, sparsity, name = part.split("|")
    calibration = None if name == "none" else calibration_set(context, name)
    sequences = calibration.sequences if calibration else []
    with sparse(context.loaded, sequences, cast(Method, method), float(sparsity)):
        answers = answers_unedited(context.stack, context.test.encoded)
    described = f"{name}, {len(sequences)} × {calibration.length}" if calibration else "none"
    more = {"method": method, "sparsity": float(sparsity), "calibration set": described} | _answered(context, answers)
    label = f"{method}, {float(sparsity):.0%}, {name}"
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


def calibration_set(context: StudyContext, name: str) -> Calibration:
    """The calibration set of this name, drawn with seed 0.

    Raises:
        InputError: there are too few texts or prompts.
    """
    run, tokenizer, count = context.run, context.loaded.tokenizer, context.run.sequences
    if name in run.texts:
        texts = read_texts(
            existing_path(run.texts[name], field=f"studies.{run.name}.texts.{name}", root=context.cell.root)
        )
        return from_texts(tokenizer, texts, name=name, count=count, length=LENGTH, seed=0)
    train = context.train if name == OWN else context.rows_of(name)[0]
    prompts = encode_prompts(train.head(count * PROMPTS), tokenizer, context.stack.context)
    return from_prompts(prompts, name=name, count=count, length=LENGTH, seed=0, fewer=True)
