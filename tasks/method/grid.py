"""The grid: accuracy and gold margin of (layer, fraction) pairs, on given rows (2507.09185 Alg. 1)."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import pandas as pd

from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.scoring import Answers, read_without, unit
from tasks.method.neurons import count, prominent_neurons
from tasks.method.pairs import COLUMNS, UNPRUNED, Pairs
from tasks.models.memory import room
from tasks.models.products import Precision
from tasks.models.stack import DecoderStack, Projection, Residuals
from tasks.models.sweep import Without

# The number of layers of one pack in a sweep if the weights are at hand. In bfloat16 each sweep keeps the products of
# the unedited pass, so that few sweeps are faster.
EACH: dict[Precision, int] = {"float32": 4, "bfloat16": 10}

# Answers of C models to rows with these indices -> which the models answer in words with the right option, bool [C, n].
Exact = Callable[[Answers, Sequence[int]], np.ndarray]


def empty_grid() -> pd.DataFrame:
    """A grid of no rows, with the columns and types of one."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})


@dataclass(frozen=True)
class Part:
    """A piece of the work: some fractions of one layer on the rows of one pack; `UNPRUNED` with the fraction 0."""

    pack: int
    layer: int
    fractions: tuple[float, ...]
    precision: Precision = "float32"

    def __str__(self) -> str:
        return f"{self.pack} {self.layer} {self.fractions} {self.precision}"


class Value(TypedDict):
    """The value of a part, for each of its fractions.

    Attributes:
        right, margin: right answers, and the sum of the gold margins; NaN where the rows have no labels.
        predicted: [fractions, rows].
        exact: how many rows are answered in words with the right option, where the grid was asked for it.
        logprobs: the log-probabilities of each row, [fractions, options], where the grid was asked for them.
        rows: the indices of these rows, likewise.
    """

    right: list[float]
    margin: list[float]
    predicted: list[list[int]]
    exact: NotRequired[list[int]]
    rows: NotRequired[list[int]]
    logprobs: NotRequired[list[list[list[float]]]]


class Grid:
    """Right answers and gold margins of pruned models on given rows, in parts that can be computed anywhere.

    All fractions of a part run as one batch from the residual that enters the layer's MLP.

    Args:
        gold: index of the right option of each row; None for rows without labels.
        scores: float32 [layers, width], by which the neurons are ordered.
        projection: the projection whose rows are the neurons.
        exact: for a grid with the column `exact_match`.
        logprobs: whether values have the log-probabilities of the options.
    """

    def __init__(
        self,
        stack: DecoderStack,
        rows: Sequence[Encoded],
        gold: Sequence[int] | None,
        scores: np.ndarray,
        projection: Projection = "gate_proj",
        exact: Exact | None = None,
        logprobs: bool = False,
    ):
        self._stack = stack
        self._rows = rows
        self._gold = gold
        self._scores = scores
        self._projection = projection
        self._exact = exact
        self._logprobs = logprobs
        self._packs = stack.pack([unit(row) for row in rows])
        self._passes: dict[tuple[int, Precision], Residuals] = {}  # of the packs that were asked for last

    @property
    def sizes(self) -> list[int]:
        """How many rows each pack has."""
        return [len(packed.units) for packed in self._packs]

    def units(self, pack: int) -> list[int]:
        """The indices of the rows of a pack, in the order of its values."""
        return list(self._packs[pack].units)

    @property
    def products(self) -> str:
        """How the model computes."""
        return self._stack.products

    def together(self, parts: Sequence[Part]) -> list[list[Part]]:
        """The parts in their order, in groups that one sweep computes.

        If the weights are at hand, a group is some layers of one pack, so that little is lost if the process is killed.
        Otherwise a group is as large as memory allows.
        """
        there = room(self._stack.model)
        groups: list[list[Part]] = []
        held = 0
        for part in parts:
            takes = len(part.fractions) * len(self._packs[part.pack].tokens) * there.state
            last = groups[-1] if groups else None
            if (
                last
                and last[-1].precision == part.precision
                and held + takes <= there.bytes / 2
                and not (self._stack.at_hand and (last[-1].pack != part.pack or len(last) == EACH[part.precision]))
            ):
                last.append(part)
                held += takes
            else:
                groups.append([part])
                held = takes
        return groups

    def compute(self, part: Part) -> Value:
        """The value of a part."""
        return self.compute_together([part])[0]

    def compute_together(self, parts: Sequence[Part]) -> list[Value]:
        """The values of parts of one precision, computed by one sweep."""
        wanted = {(part.pack, part.precision) for part in parts}
        self._passes = {key: residuals for key, residuals in self._passes.items() if key in wanted}
        for pack, precision in wanted - self._passes.keys():
            self._passes[pack, precision] = self._stack.start(self._packs[pack], precision)
        runs = [self._run(part) for part in parts]
        answers = read_without(self._stack, runs, self._rows, self._projection, parts[0].precision)
        return [self._value(part, answer) for part, answer in zip(parts, answers, strict=True)]

    def _run(self, part: Part) -> Without:
        residuals = self._passes[part.pack, part.precision]
        if part.layer == UNPRUNED:
            return Without(residuals, len(self._stack))
        return Without(residuals, part.layer, [prominent_neurons(self._scores[part.layer], p) for p in part.fractions])

    def _value(self, part: Part, answers: Answers) -> Value:
        units = self._packs[part.pack].units
        predicted = answers.predicted()
        unknown = [math.nan] * len(predicted)
        value: Value = {"right": unknown, "margin": unknown, "predicted": predicted.tolist()}
        if self._gold is not None:
            wanted = [self._gold[index] for index in units]
            value["right"] = (predicted == np.array(wanted)).sum(1).tolist()
            value["margin"] = answers.margins(wanted).sum(1).tolist()
        if self._exact is not None:
            value["exact"] = self._exact(answers, units).sum(1).tolist()
        if self._logprobs:
            value["rows"] = list(units)
            value["logprobs"] = [row.tolist() for row in answers.logprobs]
        return value


def parts_of(pairs: Pairs, packs: int, precision: Precision = "float32") -> list[Part]:
    """The work of these pairs and of the unpruned model, pack by pack."""
    return [
        Part(pack, layer, tuple(fractions), precision)
        for pack in range(packs)
        for layer, fractions in {UNPRUNED: (0.0,), **pairs}.items()
    ]


def assemble(values: Mapping[Part, Value], rows: int, width: int) -> pd.DataFrame:
    """The grid from the values of its parts: one row per pair, in their order, the unpruned model first.

    Returns:
        Columns `layer`, `fraction`, `neurons`, `accuracy`, `margin`, and where the values have them `exact_match` and
        `logprobs`: float64 [rows, options], with -inf where a row has fewer options.
    """
    sums: dict[tuple[int, float], np.ndarray] = {}
    logprobs: dict[tuple[int, float], dict[int, list[float]]] = defaultdict(dict)
    for part, value in values.items():
        for index, row in zip(value.get("rows", []), value.get("logprobs", []), strict=True):
            for fraction, options in zip(part.fractions, row, strict=True):
                logprobs[part.layer, fraction][index] = options
        counted = [value["right"], value["margin"], *([value["exact"]] if "exact" in value else [])]
        for fraction, numbers in zip(part.fractions, zip(*counted, strict=True), strict=True):
            key = part.layer, fraction
            sums[key] = sums.get(key, 0) + np.array(numbers)
    records = [
        (layer, fraction, count(fraction, width), *(total / rows)) for (layer, fraction), total in sorted(sums.items())
    ]
    columns = COLUMNS | ({"exact_match": "float64"} if records and len(records[0]) > len(COLUMNS) else {})
    grid = pd.DataFrame(records, columns=list(columns)).astype(columns)
    if logprobs:
        matrices = [_padded(logprobs[pair]) for pair in zip(grid.layer, grid.fraction, strict=True)]
        grid["logprobs"] = pd.Series(matrices, dtype=object)
    return grid


def _padded(rows: Mapping[int, list[float]]) -> np.ndarray:
    """The rows in their order, with -inf where one has fewer options than others."""
    padded = np.full((len(rows), max(map(len, rows.values()))), -np.inf)
    for position, index in enumerate(sorted(rows)):
        padded[position, : len(rows[index])] = rows[index]
    return padded
