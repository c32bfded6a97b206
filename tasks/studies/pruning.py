"""Studies on the cell's scores: fractions, several layers, and the transfer check."""

import numpy as np

from tasks.benchmarks.scoring import Answers, answers_unedited, answers_without
from tasks.benchmarks.table import Rows
from tasks.evidence.statistics import standard_error
from tasks.method.neurons import count, prominent_neurons, random_neurons
from tasks.method.recipe import Recipe
from tasks.method.silence import silenced
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json
from tasks.studies.context import Record, StudyContext, accuracy_record

FRACTIONS = [0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40]
ROUNDS = 4  # of `layers`


def fractions(context: StudyContext) -> list[Record]:
    """Accuracy by the fraction of the chosen layer that is silenced, by score and at random (seed 0)."""
    recipe = context.recipe
    scores = context.scores.ranked[recipe.layer]
    by_score = [prominent_neurons(scores, fraction) for fraction in FRACTIONS]
    at_random = [random_neurons(len(scores), count(fraction, len(scores)), 0) for fraction in FRACTIONS]
    answers = answers_without(
        context.stack, context.test.encoded, recipe.layer, by_score + at_random, projection=recipe.projection
    )
    right = answers.predicted() == np.array(context.test.gold)
    base = context.correct(context.base)
    records = [accuracy_record("unpruned", base, None, x=0.0, group="by score")]
    for group, rows in (("by score", right[: len(by_score)]), ("at random", right[len(by_score) :])):
        for fraction, row in zip(FRACTIONS, rows, strict=True):
            more = {"chosen": "yes"} if group == "by score" and fraction == recipe.fraction else {}
            records.append(accuracy_record(f"{fraction:.0%}, {group}", row, base, x=fraction, group=group, **more))
    return records


def layers(context: StudyContext) -> list[Record]:
    """Several layers pruned together, greedily: each search runs with the previous choices silenced.

    Scores are those of the unpruned model. The search stops after four rounds, or when neither accuracy nor margin on
    the examples improves.
    """
    stack, rows, base = context.stack, context.samples, context.correct(context.base)
    records = [context.base_record()]
    chosen: list[Recipe] = []
    for number in range(ROUNDS):
        with silenced(stack, *chosen):
            before = _rank(answers_unedited(stack, rows.encoded), rows)
            recipe = context.search(rows)
        with silenced(stack, *chosen, recipe):
            after = _rank(answers_unedited(stack, rows.encoded), rows)
            if after <= before:
                break
            chosen.append(recipe)
            right = context.correct(answers_unedited(stack, context.test.encoded))
        pairs = ", ".join(f"{one.layer} ({one.fraction:.0%})" for one in chosen)
        more = {"layers": pairs, "on the examples": round(after[0], 3)}
        records.append(accuracy_record(f"{number + 1} {'layer' if not number else 'layers'}", right, base, **more))
    return records


def _rank(answers: Answers, rows: Rows) -> tuple[float, float]:
    accuracy = float((answers.predicted()[0] == np.array(rows.gold)).mean())
    return accuracy, float(answers.margins(rows.gold)[0].mean())


def transfer(context: StudyContext) -> list[Record]:
    """Appendix D: compares the ranks of the grid on the examples with those on test rows, by the cell's transfer step.

    Raises:
        InputError: the cell has no transfer check.
    """
    check = read_json(context.cell.transfer)
    if not check["n"]:
        raise InputError(f"benchmarks.{context.cell.benchmark}.limits.transfer", "is 0: the cell has no transfer check")
    n, rho = check["n"], check["spearman"]
    ranks = {
        "Spearman": "flat" if rho is None else f"{rho:.2f} (p = {check['spearman_p']:.2g})",
        "percentile": f"{check['percentile']:.0f} %",
    }
    records = [Record("unpruned", check["base_accuracy"], standard_error(check["base_accuracy"], n), n)]
    for label, key, more in (("chosen on the examples", "chosen", ranks), ("best on the test rows", "best", {})):
        pair = check[key]
        more = {"layer": pair["layer"], "fraction": pair["fraction"]} | more
        records.append(Record(label, pair["accuracy"], standard_error(pair["accuracy"], n), n, more=more))
    return records
