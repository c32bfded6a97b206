"""Answers to many rows, split into parts that a worker pool can compute in any order. The step `evaluate` uses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from tasks.benchmarks.scoring import Answers, read_without, side_by_side, unit
from tasks.benchmarks.table import Rows, exact_matches
from tasks.models.memory import room
from tasks.models.products import Precision
from tasks.models.stack import DecoderStack, Projection
from tasks.models.sweep import Without


@dataclass(frozen=True)
class Part:
    """The rows of one pack."""

    pack: int
    precision: Precision = "float32"

    def __str__(self) -> str:
        return f"{self.pack} {self.precision}"


class Value(TypedDict):
    """The answers of C models to some rows.

    Attributes:
        rows: the indices of the rows.
        logprobs: for each row, [C, options].
        exact: for each row, bool [C]: whether the model's greedy answer is the right option in words.
    """

    rows: list[int]
    logprobs: list[list[list[float]]]
    exact: list[list[bool]]


class Answering:
    """The answers of C models, each with one set of neurons of one layer silenced, from one pass over each pack.

    Args:
        edits: (layer, sets of neurons) pairs. A neuron is a row of `projection`. Each set is one model; C is the number
            of sets, in this order.
        sample: the first `sample` rows go into packs of their own. These packs come first.

    Attributes:
        sampled: how many packs hold the first `sample` rows.
    """

    def __init__(
        self,
        stack: DecoderStack,
        tokenizer: Any,
        rows: Rows,
        edits: Sequence[tuple[int, Sequence[np.ndarray]]],
        projection: Projection = "gate_proj",
        sample: int = 0,
    ):
        self._stack = stack
        self._tokenizer = tokenizer
        self._rows = rows
        self._edits = edits
        self._models = sum(len(sets) for _, sets in edits)
        self._projection = projection
        units = [unit(row) for row in rows.encoded]
        first, rest = (stack.pack(part) if part else [] for part in (units[:sample], units[sample:]))
        self._packs = first + rest
        self._offsets = [0] * len(first) + [sample] * len(rest)  # row index = offset + index in the pack
        self.sampled = len(first)

    @property
    def sizes(self) -> list[int]:
        """The number of rows in each pack."""
        return [len(packed.units) for packed in self._packs]

    @property
    def products(self) -> str:
        """How the model multiplies matrices: `DecoderStack.products`."""
        return self._stack.products

    def together(self, parts: Sequence[Part]) -> list[list[Part]]:
        """Groups of parts, each for one sweep over the layers.

        Where all weights stay on the device, every part is a group. Otherwise a group holds as many parts of the same
        precision as half of the memory allows, since each sweep loads all weights.
        """
        memory = room(self._stack.model)
        groups: list[list[Part]] = []
        used = 0  # bytes of the last group
        for part in parts:
            needed = (self._models + len(self._stack)) * len(self._packs[part.pack].tokens) * memory.state
            last = groups[-1] if groups and not self._stack.at_hand else None
            if last and last[-1].precision == part.precision and used + needed <= memory.bytes / 2:
                last.append(part)
                used += needed
            else:
                groups.append([part])
                used = needed
        return groups

    def compute(self, part: Part) -> Value:
        """The answers to the rows of one pack."""
        return self.compute_together([part])[0]

    def compute_together(self, parts: Sequence[Part]) -> list[Value]:
        """The answers to the rows of several packs, from one sweep over the layers."""
        encoded = self._rows.encoded
        values: dict[Part, Value] = {}
        for offset in sorted({self._offsets[part.pack] for part in parts}):
            same = [part for part in parts if self._offsets[part.pack] == offset]
            passes = [self._stack.start(self._packs[part.pack]) for part in same]
            runs = [Without(residuals, layer, sets) for residuals in passes for layer, sets in self._edits]
            answers = read_without(self._stack, runs, encoded[offset:], self._projection, same[0].precision)
            for number, part in enumerate(same):
                indices = [offset + index for index in self._packs[part.pack].units]
                first = number * len(self._edits)
                values[part] = self._value(indices, side_by_side(answers[first : first + len(self._edits)]))
        return [values[part] for part in parts]

    def _value(self, indices: list[int], answers: Answers) -> Value:
        rows = Rows(self._rows.table.iloc[indices], [self._rows.encoded[index] for index in indices])
        exact = [exact_matches(self._tokenizer, rows, answers, model) for model in range(self._models)]
        return {
            "rows": indices,
            "logprobs": [logprobs.tolist() for logprobs in answers.logprobs],
            "exact": np.stack(exact, axis=1).tolist(),
        }


def assemble_answers(values: Mapping[Any, Value]) -> tuple[Answers, np.ndarray]:
    """Joins the values of all parts.

    Returns:
        The answers to all rows in their order, with an empty `greedy`, and the exact matches, bool [C, n].
    """
    answers: dict[int, tuple[np.ndarray, list[bool]]] = {}
    for value in values.values():
        for index, logprobs, exact in zip(value["rows"], value["logprobs"], value["exact"], strict=True):
            answers[index] = np.array(logprobs, dtype=np.float32), exact
    rows = [answers[index] for index in sorted(answers)]
    return Answers([logprobs for logprobs, _ in rows], []), np.array([exact for _, exact in rows]).T
