"""How much does weight pruning depend on its calibration set (2503.01542)? Study `calibration`.

Every method x sparsity x calibration set on the cell's test rows, beside the unpruned model. The calibration sets are
texts given by path (WikiText-2, C4), the cell's own train prompts (`own`), and those of other benchmarks. DSM pruning
stands in the same table, adapted anew on each of several draws of its examples: they are its calibration sets.
"""

from typing import Any

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
    """`method|sparsity|set`, magnitude looks at no set; `DSM|seed`."""
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
    found = None if name == "none" else calibration_set(context, name)
    with sparse(context.loaded, found.sequences if found else [], _method(method), float(sparsity)):
        answers = answers_unedited(context.stack, context.test.encoded)
    told = f"{name}, {len(found.sequences)} × {found.length}" if found else "none"
    more = {"method": method, "sparsity": float(sparsity), "calibration set": told} | _answered(context, answers)
    label = f"{method}, {float(sparsity):.0%}, {name}"
    return [accuracy_record(label, context.correct(answers), context.correct(context.base), group=method, **more)]


def _dsm(context: StudyContext, seed: int) -> Record:
    adaptation = context.settings.adaptation.model_copy(update={"seed": seed})
    told = f"{adaptation.size} examples, seed {seed}"
    more: dict[str, Any] = {"method": "DSM pruning", "sparsity": "", "calibration set": told}
    recipe, seconds = context.adapt(adaptation)
    answers = context.answers(recipe)
    right, base = context.correct(answers), context.correct(context.base)
    more |= pair_columns(recipe, seconds) | _answered(context, answers)
    return accuracy_record(f"DSM pruning, {told}", right, base, group="DSM pruning", **more)


def _answered(context: StudyContext, answers: Answers) -> dict[str, Any]:
    """What tells calibration sets apart where accuracy does not: the options predicted, and the mean gold margin."""
    margin = float(answers.margins(context.test.gold)[0].mean())
    return {"answers": counts(answers), "margin": round(margin, 4)}


def spreads(records: list[Record]) -> list[Record]:
    """The records, the last one of each method and sparsity with the spread of accuracy over the calibration sets."""
    found: list[Record] = []
    for record in records:
        key = record.more.get("method"), record.more.get("sparsity")
        same = [r for r in records if (r.more.get("method"), r.more.get("sparsity")) == key]
        values = [r.value for r in same if r.value is not None]
        if key[0] and len(values) > 1 and record is same[-1]:
            spread = round(max(values) - min(values), 3)
            record = Record(**vars(record) | {"more": record.more | {"spread over sets": spread}})
        found.append(record)
    return found


def _method(name: str) -> Method:
    methods: dict[str, Method] = {"magnitude": "magnitude", "wanda": "wanda", "ria": "ria", "sparsegpt": "sparsegpt"}
    return methods[name]


def calibration_set(context: StudyContext, name: str) -> Calibration:
    """The calibration set of this name, its first draw (seed 0).

    Raises:
        InputError: its texts or prompts are too few.
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
