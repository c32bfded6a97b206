"""Study `cross_benchmark`: models pruned on one benchmark and evaluated on others, such as its other languages."""

import numpy as np

from tasks.benchmarks.scoring import answers_unedited
from tasks.method.recipe import Recipe
from tasks.studies.context import Record, StudyContext, accuracy_record, pair_columns


def parts(context: StudyContext) -> list[str]:
    """One part for each benchmark; the model pruned on it is evaluated on all."""
    return [context.cell.benchmark, *context.run.benchmarks]


def compute(context: StudyContext, part: str) -> list[Record]:
    """The accuracies of the unpruned model on this benchmark, and of the model pruned on it on every benchmark."""
    recipe, seconds = _adapted(context, part)
    records: list[Record] = []
    for benchmark in parts(context):
        rows = context.test_of(benchmark)
        gold = np.array(rows.gold)
        base = answers_unedited(context.stack, rows.encoded).predicted()[0] == gold
        right = context.answers(recipe, rows.encoded).predicted()[0] == gold
        if benchmark == part:
            records.insert(0, accuracy_record(f"unpruned on {benchmark}", base, None, group="unpruned"))
        gain = round(float(right.mean() - base.mean()), 3)
        group = "its own benchmark" if benchmark == part else "another benchmark"
        more = {"gain": gain} | pair_columns(recipe, seconds)
        records.append(accuracy_record(f"{part} → {benchmark}", right, base, group=group, **more))
    return records


def _adapted(context: StudyContext, benchmark: str) -> tuple[Recipe, float | None]:
    if benchmark == context.cell.benchmark:
        return context.recipe, None
    train, _ = context.rows_of(benchmark)
    return context.adapt(train=train)
