"""Study `compare`: pruning and other systems on the same rows, with their costs."""

import time
from typing import Any

import numpy as np

from tasks.benchmarks.table import Rows
from tasks.comparison.system import FitData
from tasks.evidence.statistics import standard_error
from tasks.runtime.usage import peak_memory
from tasks.studies.context import Record, StudyContext, accuracy_record, counts
from tasks.studies.systems import systems

SEARCHED = ("pruned", "random", "random_searched")  # these choose layer and fraction by the grid
SEEDED = ("random", "random_searched")  # one draw for each of evaluation.control_seeds


def parts(context: StudyContext) -> list[str]:
    """The names of the parts, `system` or `system seed`."""
    seeds = context.settings.evaluation.control_seeds
    names = ["base", "pruned"]
    for name in context.run.systems:
        names += [f"{name} {seed}" for seed in seeds] if name in SEEDED else [name]
    return names


def compute(context: StudyContext, part: str) -> list[Record]:
    """Fits one system and evaluates it on the test rows."""
    name, _, seed = part.partition(" ")
    test, samples = context.test, context.samples
    selection_rows = test if context.run.protocol == "published" else samples
    with peak_memory() as memory:
        started = time.monotonic()
        if name == "base":
            answers, examples, labels, settings = context.base, 0, 0, {}
        else:
            fit_data = FitData(
                context.loaded, context.stack, samples, selection_rows, int(seed or 0), context.unlabeled
            )
            fitted = systems(context.cell)[name](fit_data)
            with fitted.applied() as answer:
                answers = answer(test.encoded)
            examples, labels, settings = fitted.examples, fitted.labels, fitted.settings
        seconds = time.monotonic() - started
    right = context.correct(answers)
    more = {
        "examples": examples,
        "labels": labels,
        "seconds": round(seconds, 1),
        "peak GB": memory["peak_gb"],
        "settings chosen on": _chosen_on(name, settings, samples, selection_rows),
        "answers": counts(answers),
        "chosen": ", ".join(f"{key} {_short(value)}" for key, value in settings.items()),
    }
    base = None if name == "base" else context.correct(context.base)
    return [accuracy_record(part, right, base, group=name, **more)]


def _chosen_on(name: str, settings: dict[str, Any], samples: Rows, selection_rows: Rows) -> str:
    """The rows on which layer, fraction or strength were chosen; empty for a system without such settings."""
    if "accuracy when chosen" in settings and selection_rows is not samples:
        return f"{len(selection_rows.gold)} test rows"
    searched = name in SEARCHED or "accuracy when chosen" in settings
    return f"{len(samples.gold)} examples" if searched else ""


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def over_seeds(records: list[Record]) -> list[Record]:
    """Merges the draws of a seeded system into one row: mean accuracy, its binomial error, the range of p."""
    result: list[Record] = []
    for name in dict.fromkeys(record.group for record in records):
        draws = [record for record in records if record.group == name]
        if name not in SEEDED or len(draws) < 2:
            result += draws
            continue
        values = [record.value for record in draws if record.value is not None]
        mean, n = float(np.mean(values)), draws[0].n
        ps = [record.p for record in draws if record.p is not None]
        more = draws[0].more | {
            "seconds": round(float(np.mean([record.more["seconds"] for record in draws])), 1),
            "answers": "",
            "chosen": f"{len(draws)} draws, accuracy {min(values):.3f} to "
            f"{max(values):.3f}, p {min(ps):.2g} to {max(ps):.2g}",
        }
        result.append(Record(name, mean, standard_error(mean, n or 1), n, None, group=name, more=more))
    return result
