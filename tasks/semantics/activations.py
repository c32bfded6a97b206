"""Step 2 of neuron semantic attribution (2503.01542): the response of every neuron to every word.

A neuron is a column of down_proj with the input h = act(W_gate x) * W_up x, or h = act(W_first x) without a gate. The
paper does not define the score; here

    a(n, w) = mean over the occurrences of w of |h_n| at the last sub-token of w                       (ours).

Only sums per layer, word and neuron are kept, never the activations of single tokens.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.models.packing import Pack
from tasks.models.stack import DecoderStack
from tasks.semantics.words import RowWords


@dataclass(frozen=True)
class WordPositions:
    """The positions of words in prompts.

    Attributes:
        words: W words.
        prompts: token ids.
        marks: for each prompt, pairs (index of a word, position of the last token of one of its occurrences).
    """

    words: list[str]
    prompts: list[list[int]]
    marks: list[list[tuple[int, int]]]

    def subset(self, rows: Sequence[int]) -> "WordPositions":
        """The same words in some of the prompts."""
        return WordPositions(self.words, [self.prompts[i] for i in rows], [self.marks[i] for i in rows])

    def first(self, count: int) -> "WordPositions":
        """The first words in the same prompts."""
        marks = [[mark for mark in row if mark[0] < count] for row in self.marks]
        return WordPositions(self.words[:count], self.prompts, marks)


@dataclass(frozen=True)
class WordActivations:
    """a(n, w) of every layer.

    Attributes:
        mean: float32 [layers, W, width]; 0 for a word that does not occur.
        counts: the numbers of occurrences, int64 [W].
    """

    mean: np.ndarray
    counts: np.ndarray


def word_positions(words: Sequence[str], prompts: Sequence[Sequence[int]], rows: Sequence[RowWords]) -> WordPositions:
    """The positions of these words in the rows' own text."""
    index = {word: i for i, word in enumerate(words)}
    marks = [[(index[one.word], one.tokens[-1]) for one in row.occurrences if one.word in index] for row in rows]
    return WordPositions(list(words), [list(prompt) for prompt in prompts], marks)


@torch.no_grad()
def word_activations(
    stack: DecoderStack, positions: WordPositions, pruned: AbstractContextManager[Any] | None = None
) -> WordActivations:
    """a(n, w) of the model inside the context `pruned`, or of the unpruned model.

    Memory in addition to the model: 4 bytes per layer, word and neuron, and one pack.

    Args:
        pruned: a context that prunes the model in place and restores it at its end
            (`tasks.method.silence.silenced`, `tasks.sparsity.weight_pruning.sparse`).
    """
    used = [(prompt, marks) for prompt, marks in zip(positions.prompts, positions.marks, strict=True) if marks]
    # Tokens after the last word do not change its activations.
    units = [
        [(prompt[: max(position for _, position in marks) + 1], sorted({position for _, position in marks}))]
        for prompt, marks in used
    ]
    sums = torch.zeros(len(stack), len(positions.words), stack.d_ff)
    counts = np.zeros(len(positions.words), dtype=np.int64)
    with pruned or nullcontext():
        for packed in stack.pack(units) if units else []:
            pairs = [
                (word, packed.read_of[index, 0, position])
                for index in packed.units
                for word, position in used[index][1]
            ]
            words, reads = (torch.tensor(column) for column in zip(*pairs, strict=True))
            np.add.at(counts, words.numpy(), 1)
            _add(stack, packed, sums, words, reads)
    mean = (sums / torch.from_numpy(counts).clamp(min=1)[:, None]).numpy()
    return WordActivations(mean, counts)


def _add(stack: DecoderStack, packed: Pack, sums: Tensor, words: Tensor, reads: Tensor) -> None:
    """Adds |h| at a pack's reads to the sums of their words."""

    def add(layer: int, hidden: Tensor) -> None:
        # The last layer runs on the reads only. Sums are on the CPU, where their order is deterministic.
        at_reads = hidden if layer == len(stack) - 1 else hidden[packed.reads.to(hidden.device)]
        sums[layer].index_add_(0, words, at_reads.abs().float().cpu()[reads])

    handles = [mlp.watch("gate_proj", partial(add, layer)) for layer, mlp in enumerate(stack.mlps)]
    try:
        stack.clean(packed)
    finally:
        for handle in handles:
            handle.remove()
