"""How much does weight pruning depend on its calibration set (2503.01542)? Study `calibration`.

Every method x sparsity x calibration set on the cell's test rows, beside the unpruned model. The calibration sets are
texts given by path (WikiText-2, C4), the cell's own train prompts (`own`), and those of other benchmarks. DSM pruning
stands in the same table, adapted anew on each of several draws of its examples: they are its calibration sets.
"""

from typing import Any

from tasks.benchmarks.scoring import Answers, answers_unedited
from tasks.runtime.files import existing
from tasks.sparsity.calibration import Calibration, encode_prompts, from_prompts, from_texts, read_texts
from tasks.sparsity.weight_pruning import Method, sparse
from tasks.studies.context import Record, Workshop, accuracy_record, counts, pair_columns

OWN = "own"
DSM = "DSM"
LENGTH = 512  # tokens of a calibration sequence
PROMPTS = 32  # train prompts read for each sequence


def parts(workshop: Workshop) -> list[str]:
    """`method|sparsity|set`, magnitude looks at no set; `DSM|seed`."""
    run = workshop.run
    sets = [*run.texts, OWN, *run.benchmarks]
    weights = [
        f"{method}|{sparsity}|{name}"
        for method in run.methods
        for sparsity in run.sparsities
        for name in (["none"] if method == "magnitude" else sets)
    ]
    return ["unpruned", *(f"{DSM}|{seed}" for seed in range(run.seeds)), *weights]


def compute(workshop: Workshop, part: str) -> list[Record]:
    """The accuracy of one pruned model."""
    if part == "unpruned":
        right = workshop.right(workshop.base)
        return [accuracy_record("unpruned", right, None, **_answered(workshop, workshop.base))]
    if part.startswith(DSM):
        return [_dsm(workshop, int(part.split("|")[1]))]
    method, sparsity, name = part.split("|")
    found = None if name == "none" else calibration_set(workshop, name)
    with sparse(workshop.loaded, found.sequences if found else [], _method(method), float(sparsity)):
        answers = answers_unedited(workshop.stack, workshop.test.encoded)
    told = f"{name}, {len(found.sequences)} × {found.length}" if found else "none"
    more = {"method": method, "sparsity": float(sparsity), "calibration set": told} | _answered(workshop, answers)
    label = f"{method}, {float(sparsity):.0%}, {name}"
    return [accuracy_record(label, workshop.right(answers), workshop.right(workshop.base), group=method, **more)]


def _dsm(workshop: Workshop, seed: int) -> Record:
    adaptation = workshop.settings.adaptation.model_copy(update={"seed": seed})
    told = f"{adaptation.size} examples, seed {seed}"
    more: dict[str, Any] = {"method": "DSM pruning", "sparsity": "", "calibration set": told}
    recipe, seconds = workshop.adapt(adaptation)
    answers = workshop.answers(recipe)
    right, base = workshop.right(answers), workshop.right(workshop.base)
    more |= pair_columns(recipe, seconds) | _answered(workshop, answers)
    return accuracy_record(f"DSM pruning, {told}", right, base, group="DSM pruning", **more)


def _answered(workshop: Workshop, answers: Answers) -> dict[str, Any]:
    """What tells calibration sets apart where accuracy does not: the options predicted, and the mean gold margin."""
    margin = float(answers.margins(workshop.test.gold)[0].mean())
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


def calibration_set(workshop: Workshop, name: str) -> Calibration:
    """The calibration set of this name, its first draw (seed 0).

    Raises:
        InputError: its texts or prompts are too few.
    """
    run, tokenizer, count = workshop.run, workshop.loaded.tokenizer, workshop.run.sequences
    if name in run.texts:
        texts = read_texts(existing(run.texts[name], field=f"studies.{run.name}.texts.{name}", root=workshop.cell.root))
        return from_texts(tokenizer, texts, name=name, count=count, length=LENGTH, seed=0)
    train = workshop.train if name == OWN else workshop.rows_of(name)[0]
    prompts = encode_prompts(train.head(count * PROMPTS), tokenizer, workshop.stack.context)
    return from_prompts(prompts, name=name, count=count, length=LENGTH, seed=0, fewer=True)
