"""Step 2 of neuron semantic attribution (2503.01542): how strongly every neuron answers to every word.

A neuron is a column of down_proj, and h = act(W_gate x) * W_up x is what enters it. The paper's score is open; here

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
class Places:
    """Where words stand in prompts.

    Attributes:
        words: W of them.
        prompts: token ids.
        marks: for each prompt, (number of a word, position of the last sub-token of one of its occurrences).
    """

    words: list[str]
    prompts: list[list[int]]
    marks: list[list[tuple[int, int]]]

    def among(self, rows: Sequence[int]) -> "Places":
        """The same words in some of the prompts."""
        return Places(self.words, [self.prompts[i] for i in rows], [self.marks[i] for i in rows])


@dataclass(frozen=True)
class WordActivations:
    """a(n, w) of every layer.

    Attributes:
        mean: float32 [layers, W, width]; 0 for a word without an occurrence.
        counts: of the occurrences, int64 [W].
    """

    mean: np.ndarray
    counts: np.ndarray


def places(words: Sequence[str], prompts: Sequence[Sequence[int]], rows: Sequence[RowWords]) -> Places:
    """Where these words stand in the rows' own text."""
    number = {word: i for i, word in enumerate(words)}
    marks = [[(number[one.word], one.tokens[-1]) for one in row.occurrences if one.word in number] for row in rows]
    return Places(list(words), [list(prompt) for prompt in prompts], marks)


@torch.no_grad()
def word_activations(
    stack: DecoderStack, there: Places, pruned: AbstractContextManager[Any] | None = None
) -> WordActivations:
    """a(n, w) of the model inside the context `pruned`, or as it is.

    Args:
        pruned: a context in which the model is pruned in place, by hooks or by its weights, and at whose end it is as
            it was (`tasks.method.silence.silenced`, `tasks.sparsity.prune.sparse`).

    Memory above the model's: 4 bytes for each layer, word and neuron, and one pack.
    """
    used = [(prompt, marks) for prompt, marks in zip(there.prompts, there.marks, strict=True) if marks]
    # What stands behind the last word does not change what is read.
    units = [
        [(prompt[: max(position for _, position in marks) + 1], sorted({position for _, position in marks}))]
        for prompt, marks in used
    ]
    sums = torch.zeros(len(stack), len(there.words), stack.d_ff)
    counts = np.zeros(len(there.words), dtype=np.int64)
    with pruned or nullcontext():
        for packed in stack.pack(units) if units else []:
            found = [
                (word, packed.read_of[index, 0, position])
                for index in packed.units
                for word, position in used[index][1]
            ]
            words, reads = (torch.tensor(column) for column in zip(*found, strict=True))
            np.add.at(counts, words.numpy(), 1)
            _add(stack, packed, sums, words, reads)
    mean = (sums / torch.from_numpy(counts).clamp(min=1)[:, None]).numpy()
    return WordActivations(mean, counts)


def _add(stack: DecoderStack, packed: Pack, sums: Tensor, words: Tensor, reads: Tensor) -> None:
    """Adds |h| of a pack's reads to the sums of their words."""

    def add(layer: int, _: Any, inputs: tuple[Tensor, ...]) -> None:
        hidden = inputs[0][0]
        # The last layer runs on the reads alone. On the CPU, where the order of a sum is always the same.
        at_reads = hidden if layer == len(stack) - 1 else hidden[packed.reads.to(hidden.device)]
        sums[layer].index_add_(0, words, at_reads.abs().float().cpu()[reads])

    handles = [mlp.down.register_forward_pre_hook(partial(add, layer)) for layer, mlp in enumerate(stack.mlps)]
    try:
        stack.clean(packed)
    finally:
        for handle in handles:
            handle.remove()
