"""Studies on the cell's own scores: fractions, several layers, free answers, and the transfer check."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.scoring import Answers, answers_unedited, answers_without, exact_match
from tasks.benchmarks.table import Rows
from tasks.evidence.statistics import standard_error
from tasks.models.gated import PLACES, GatedMlp
from tasks.models.stack import DecoderStack
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import read_json
from tasks.pruning.grid import COLUMNS, UNPRUNED, Pairs
from tasks.pruning.masks import count, random_neurons, top_neurons
from tasks.pruning.recipe import choose
from tasks.pruning.strategies import STRATEGIES
from tasks.studies.workshop import Choice, Record, Workshop, accuracy_record

FRACTIONS = [0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40]
ROUNDS = 4  # of `layers`


def fractions(workshop: Workshop) -> list[Record]:
    """Accuracy against the fraction of the chosen layer that is silenced, by score and at random (seed 0)."""
    choice, width = workshop.chosen, workshop.ranking.shape[1]
    numbers = [count(fraction, width) for fraction in FRACTIONS]
    by_score = [top_neurons(workshop.ranking[choice.layer], number) for number in numbers]
    at_random = [random_neurons(width, number, 0) for number in numbers]
    answers = answers_without(
        workshop.stack, workshop.test.encoded, choice.layer, by_score + at_random, projection=choice.projection
    )
    right = answers.predicted() == np.array(workshop.test.gold)
    base = workshop.right(workshop.base)
    found = [accuracy_record("unpruned", base, None, x=0.0, group="by score")]
    for group, rows in (("by score", right[: len(numbers)]), ("at random", right[len(numbers) :])):
        for fraction, row in zip(FRACTIONS, rows, strict=True):
            more = {"chosen": "yes"} if group == "by score" and fraction == choice.fraction else {}
            found.append(accuracy_record(f"{fraction:.0%}, {group}", row, base, x=fraction, group=group, **more))
    return found


def layers(workshop: Workshop) -> list[Record]:
    """Several layers pruned together, greedily: the search is done again with what was chosen before silenced.

    Scores stay those of the unpruned model. It stops when the examples gain nothing more, in accuracy or margin, or
    after four rounds.
    """
    stack, rows, base = workshop.stack, workshop.samples, workshop.right(workshop.base)
    found = [workshop.base_record()]
    chosen: list[Choice] = []
    for number in range(ROUNDS):
        with silenced(stack, chosen):
            before = _rank(answers_unedited(stack, rows.encoded), rows)
            choice = workshop.search(rows, workshop.ranking, workshop.chosen.projection)
        with silenced(stack, [*chosen, choice]):
            after = _rank(answers_unedited(stack, rows.encoded), rows)
            if after <= before:
                break
            chosen.append(choice)
            right = workshop.right(answers_unedited(stack, workshop.test.encoded))
        told = ", ".join(f"{c.layer} ({c.fraction:.0%})" for c in chosen)
        more = {"layers": told, "on the examples": round(after[0], 3)}
        found.append(accuracy_record(f"{number + 1} {'layer' if not number else 'layers'}", right, base, **more))
    return found


def _rank(answers: Answers, rows: Rows) -> tuple[float, float]:
    accuracy = float((answers.predicted()[0] == np.array(rows.gold)).mean())
    return accuracy, float(answers.margins(rows.gold)[0].mean())


@contextmanager
def silenced(stack: DecoderStack, choices: list[Choice]) -> Iterator[None]:
    """The model with these rows zeroed in its weights; at the end its weights are as they were, bit for bit."""
    changed = []
    try:
        for choice in choices:
            weight, rows = _rows(stack.mlps[choice.layer], choice)
            changed.append((weight, rows, weight[rows].clone()))
            with torch.no_grad():
                weight[rows] = 0
        yield
    finally:
        for weight, rows, before in reversed(changed):
            with torch.no_grad():
                weight[rows] = before


def _rows(mlp: GatedMlp, choice: Choice) -> tuple[torch.Tensor, np.ndarray]:
    """The weight that holds the rows of a choice, and where in it they are: gate and up may share one."""
    name, part, parts = next(p for p in PLACES[choice.projection] if hasattr(mlp.module, p[0]))
    weight = getattr(mlp.module, name).weight
    return weight, choice.neurons + part * (len(weight) // parts)


def generation(workshop: Workshop) -> list[Record]:
    """Free answers: the pair is chosen, and the models compared, by exact match of what the model says of itself.

    Teacher forcing tells it: greedy decoding gives the right option if and only if each of its tokens is the most
    probable one behind those before it.
    """
    test, scores = workshop.test, workshop.ranking
    search = workshop.settings.search
    grid = STRATEGIES[search.strategy](scores, search.fractions, _ByExactMatch(workshop))
    pair, _ = choose(grid)
    layer, number = int(pair["layer"]), int(pair["neurons"])
    neurons = top_neurons(scores[layer], number)
    choice = Choice(layer, float(pair["fraction"]), neurons, workshop.chosen.projection)
    before = said_right(workshop, test, workshop.base)
    found = [accuracy_record("unpruned", before, None)]
    for label, chosen, more in (
        ("chosen by exact match", choice, {"on the examples": round(float(pair["accuracy"]), 3)}),
        ("chosen by option accuracy (the cell's)", workshop.chosen, {}),
    ):
        right = said_right(workshop, test, workshop.answers(chosen))
        found.append(accuracy_record(label, right, before, **chosen.more() | more))
    return found


class _ByExactMatch:
    """What a strategy asks (`tasks.pruning.strategies.Evaluate`), with the exact match in place of the accuracy."""

    def __init__(self, workshop: Workshop):
        self._workshop = workshop
        self.sizes = [len(workshop.samples.gold)]

    def __call__(self, pairs: Pairs, pack: int | None = None) -> pd.DataFrame:
        found, width = [self._row(UNPRUNED, 0.0, answers_unedited(*self._asked), 0)], self._workshop.ranking.shape[1]
        for layer, fractions in pairs.items():
            sets = [top_neurons(self._workshop.ranking[layer], count(fraction, width)) for fraction in fractions]
            answers = answers_without(*self._asked, layer, sets, projection=self._workshop.chosen.projection)
            found += [self._row(layer, fraction, answers, i) for i, fraction in enumerate(fractions)]
        return pd.DataFrame(found, columns=list(COLUMNS)).astype(COLUMNS)

    @property
    def _asked(self) -> tuple[DecoderStack, list[Encoded]]:
        return self._workshop.stack, self._workshop.samples.encoded

    def _row(self, layer: int, fraction: float, answers: Answers, model: int) -> tuple[int, float, int, float, float]:
        rows = self._workshop.samples
        right = float(said_right(self._workshop, rows, answers, model).mean())
        margin = float(answers.margins(rows.gold)[model].mean())
        return layer, fraction, count(fraction, self._workshop.ranking.shape[1]), right, margin


def said_right(workshop: Workshop, rows: Rows, answers: Answers, model: int = 0) -> np.ndarray:
    """Which rows one of the models answers in words with the right option, bool [n]."""
    return np.array(
        [
            exact_match(workshop.loaded.tokenizer, options[gold], greedy[model, gold, row.given :].tolist())
            for options, gold, greedy, row in zip(
                rows.table["options"], rows.gold, answers.greedy, rows.encoded, strict=True
            )
        ]
    )


def transfer(workshop: Workshop) -> list[Record]:
    """Appendix D: does the grid on the examples rank like the grid on test rows? From the cell's transfer step.

    Raises:
        InputError: the cell has no transfer check.
    """
    found = read_json(workshop.cell.transfer)
    if not found["n"]:
        raise InputError(
            f"benchmarks.{workshop.cell.benchmark}.limits.transfer", "is 0: the cell has no transfer check to tell of"
        )
    n, rho = found["n"], found["spearman"]
    told = {
        "Spearman": "flat" if rho is None else f"{rho:.2f} (p = {found['spearman_p']:.2g})",
        "percentile": f"{found['percentile']:.0f} %",
    }
    records = [Record("unpruned", found["base_accuracy"], standard_error(found["base_accuracy"], n), n)]
    for label, key, more in (("chosen on the examples", "chosen", told), ("best on the test rows", "best", {})):
        pair = found[key]
        more = {"layer": pair["layer"], "fraction": pair["fraction"]} | more
        records.append(Record(label, pair["accuracy"], standard_error(pair["accuracy"], n), n, more=more))
    return records
