"""Pruned on one benchmark, evaluated on others: `multilingual` (languages of one benchmark) and `domains`."""

import numpy as np

from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.table import Rows
from tasks.method.recipe import Recipe
from tasks.studies.context import Record, Workshop, accuracy_record, pair_columns


def parts(workshop: Workshop) -> list[str]:
    """One part for each benchmark that is pruned on; it is evaluated on all of them."""
    return [workshop.cell.benchmark, *workshop.run.benchmarks]


def compute(workshop: Workshop, part: str) -> list[Record]:
    """The unpruned model on this benchmark, and the model pruned on it on every benchmark."""
    recipe, seconds = _adapted(workshop, part)
    records: list[Record] = []
    for benchmark in parts(workshop):
        rows = _test(workshop, benchmark)
        gold = np.array(rows.gold)
        base = answers_unedited(workshop.stack, rows.encoded).predicted()[0] == gold
        right = workshop.answers(recipe, rows.encoded).predicted()[0] == gold
        if benchmark == part:
            records.insert(0, accuracy_record(f"unpruned on {benchmark}", base, None, group="unpruned"))
        gain = round(float(right.mean() - base.mean()), 3)
        group = "its own benchmark" if benchmark == part else "another benchmark"
        more = {"gain": gain} | pair_columns(recipe, seconds)
        records.append(accuracy_record(f"{part} → {benchmark}", right, base, group=group, **more))
    return records


def _adapted(workshop: Workshop, benchmark: str) -> tuple[Recipe, float | None]:
    if benchmark == workshop.cell.benchmark:
        return workshop.chosen, None
    train, _ = workshop.rows_of(benchmark)
    return workshop.adapt(train=train)


def _test(workshop: Workshop, benchmark: str) -> Rows:
    if benchmark == workshop.cell.benchmark:
        return workshop.test
    _, test = workshop.rows_of(benchmark)
    limit = workshop.run.test or workshop.settings.benchmarks[benchmark].limits.test
    return workshop.encoded(test.head(limit))
