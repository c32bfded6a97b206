"""Answers to many rows in parts that can be computed anywhere: what the step `evaluate` is made of."""

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
    """The answers of C models to the rows with these indices.

    `logprobs`: of each row, [C, options]; `exact`: of each row, which models answer it in words with the right option.
    """

    rows: list[int]
    logprobs: list[list[list[float]]]
    exact: list[list[bool]]


class Answering:
    """The answers of C models, each of which is left without a set of neurons of one layer, by one pass over each pack.

    Args:
        edits: layers with sets of neurons, rows of `projection`; one model for each set, C in all, in this order.
        sample: so many rows, the first, are in packs of their own, which come first.
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
        few, most = (stack.pack(part) if part else [] for part in (units[:sample], units[sample:]))
        self._packs = few + most
        self._offsets = [0] * len(few) + [sample] * len(most)
        self.sampled = len(few)

    @property
    def sizes(self) -> list[int]:
        """How many rows each pack has."""
        return [len(packed.units) for packed in self._packs]

    @property
    def products(self) -> str:
        """How the model computes."""
        return self._stack.products

    def together(self, parts: Sequence[Part]) -> list[list[Part]]:
        """The parts in groups that one sweep serves: one by one where weights are at hand, else what memory holds."""
        there = room(self._stack.model)
        groups: list[list[Part]] = []
        held = 0
        for part in parts:
            takes = (self._models + len(self._stack)) * len(self._packs[part.pack].tokens) * there.state
            last = groups[-1] if groups and not self._stack.at_hand else None
            if last and last[-1].precision == part.precision and held + takes <= there.bytes / 2:
                last.append(part)
                held += takes
            else:
                groups.append([part])
                held = takes
        return groups

    def compute(self, part: Part) -> Value:
        """The answers to the rows of one pack."""
        return self.compute_together([part])[0]

    def compute_together(self, parts: Sequence[Part]) -> list[Value]:
        """The answers to the rows of several packs, by one sweep."""
        encoded = self._rows.encoded
        found: dict[Part, Value] = {}
        for offset in sorted({self._offsets[part.pack] for part in parts}):
            own = [part for part in parts if self._offsets[part.pack] == offset]
            passes = [self._stack.start(self._packs[part.pack]) for part in own]
            runs = [Without(residuals, layer, sets) for residuals in passes for layer, sets in self._edits]
            answers = read_without(self._stack, runs, encoded[offset:], self._projection, own[0].precision)
            for number, part in enumerate(own):
                indices = [offset + index for index in self._packs[part.pack].units]
                first = number * len(self._edits)
                found[part] = self._value(indices, side_by_side(answers[first : first + len(self._edits)]))
        return [found[part] for part in parts]

    def _value(self, indices: list[int], answers: Answers) -> Value:
        rows = Rows(self._rows.table.iloc[indices], [self._rows.encoded[index] for index in indices])
        exact = [exact_matches(self._tokenizer, rows, answers, model) for model in range(self._models)]
        return {
            "rows": indices,
            "logprobs": [logprobs.tolist() for logprobs in answers.logprobs],
            "exact": np.stack(exact, axis=1).tolist(),
        }


def assemble_answers(values: Mapping[Any, Value]) -> tuple[Answers, np.ndarray]:
    """The log-probabilities of all rows, and which models answer them exactly, bool [C, n], from the parts' values.

    `Answers.greedy` is empty.
    """
    found: dict[int, tuple[np.ndarray, list[bool]]] = {}
    for value in values.values():
        for index, logprobs, exact in zip(value["rows"], value["logprobs"], value["exact"], strict=True):
            found[index] = np.array(logprobs, dtype=np.float32), exact
    rows = [found[index] for index in sorted(found)]
    return Answers([logprobs for logprobs, _ in rows], []), np.array([exact for _, exact in rows]).T
