"""The grid: accuracy and gold margin of (layer, fraction) pairs, on given rows (2507.09185 Alg. 1)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import pandas as pd

from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.scoring import Answers, read_options, read_without, unit
from tasks.method.neurons import count, prominent_neurons
from tasks.models.products import Precision
from tasks.models.stack import DecoderStack, Projection, Residuals

UNPRUNED = -1  # the layer of the row that stands for the model as it is
COLUMNS = {"layer": "int64", "fraction": "float64", "neurons": "int64", "accuracy": "float64", "margin": "float64"}

Pairs = Mapping[int, Sequence[float]]  # layer -> ascending fractions
# Answers of C models to rows with these indices -> which the models answer in words with the right option, bool [C, n].
Exact = Callable[[Answers, Sequence[int]], np.ndarray]


def empty_grid() -> pd.DataFrame:
    """A grid of no rows, with the columns and types of one."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})


def every_pair(layers: int, fractions: Sequence[float]) -> Pairs:
    """All layers x all fractions."""
    return dict.fromkeys(range(layers), fractions)


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
    """What a part comes to, for each of its fractions: right answers, sum of gold margins, each row's prediction.

    `exact`: how many rows are answered in words with the right option, where the grid was asked for it.
    """

    right: list[int]
    margin: list[float]
    predicted: list[list[int]]
    exact: NotRequired[list[int]]


class Grid:
    """Right answers and gold margins of pruned models on given rows, in parts that can be computed anywhere.

    All fractions of a part run as one batch from the residual that enters the layer's MLP.

    Args:
        gold: index of the right option of each row.
        scores: float32 [layers, width], what neurons are ordered by.
        projection: the one whose rows the neurons are.
        exact: for a grid with the column `exact_match`.
    """

    def __init__(
        self,
        stack: DecoderStack,
        rows: Sequence[Encoded],
        gold: Sequence[int],
        scores: np.ndarray,
        projection: Projection = "gate_proj",
        exact: Exact | None = None,
    ):
        self._stack = stack
        self._rows = rows
        self._gold = gold
        self._scores = scores
        self._projection = projection
        self._exact = exact
        self._packs = stack.pack([unit(row) for row in rows])
        self._clean: tuple[tuple[int, Precision], Residuals] | None = None  # of the last pack that was asked for

    @property
    def sizes(self) -> list[int]:
        """How many rows each pack has."""
        return [len(packed.units) for packed in self._packs]

    @property
    def products(self) -> str:
        """How the model computes."""
        return self._stack.products

    def compute(self, part: Part) -> Value:
        """What a part comes to."""
        packed, key = self._packs[part.pack], (part.pack, part.precision)
        if self._clean is None or self._clean[0] != key:
            self._clean = None  # frees the memory of the one before
            self._clean = key, self._stack.clean(packed, part.precision)
        residuals = self._clean[1]
        if part.layer == UNPRUNED:
            answers = read_options(packed, self._rows, residuals.logits[None])
        else:
            sets = [prominent_neurons(self._scores[part.layer], p) for p in part.fractions]
            answers = read_without(self._stack, residuals, self._rows, part.layer, sets, self._projection)
        wanted = [self._gold[index] for index in packed.units]
        predicted = answers.predicted()
        value: Value = {
            "right": (predicted == np.array(wanted)).sum(1).tolist(),
            "margin": answers.margins(wanted).sum(1).tolist(),
            "predicted": predicted.tolist(),
        }
        if self._exact is not None:
            value["exact"] = self._exact(answers, packed.units).sum(1).tolist()
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
        Columns `layer`, `fraction`, `neurons`, `accuracy`, `margin`, and `exact_match` where the values have it.
    """
    sums: dict[tuple[int, float], np.ndarray] = {}
    for part, value in values.items():
        counted = [value["right"], value["margin"], *([value["exact"]] if "exact" in value else [])]
        for fraction, numbers in zip(part.fractions, zip(*counted, strict=True), strict=True):
            key = part.layer, fraction
            sums[key] = sums.get(key, 0) + np.array(numbers)
    records = [
        (layer, fraction, count(fraction, width), *(total / rows)) for (layer, fraction), total in sorted(sums.items())
    ]
    columns = COLUMNS | ({"exact_match": "float64"} if records and len(records[0]) > len(COLUMNS) else {})
    return pd.DataFrame(records, columns=list(columns)).astype(columns)
