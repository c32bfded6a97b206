"""The answers of a model to multiple-choice rows: the log-probability of each option, given the prompt."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.benchmarks.benchmark_spec import EVERY
from tasks.benchmarks.encoding import Encoded, encode
from tasks.models.loading import Loaded
from tasks.models.memory import room, with_less
from tasks.models.packing import Pack, Unit
from tasks.models.products import Precision
from tasks.models.stack import DecoderStack, Projection
from tasks.models.sweep import Without, all_logits_without, finish
from tasks.runtime.errors import InputError


@dataclass(frozen=True)
class Answers:
    """Answers of C edited models to n rows.

    Attributes:
        logprobs: for each row, float32 [C, options]: sum of the log-probabilities of the option's tokens.
        greedy: for each row, int64 [C, options, tokens]: the token with the largest logit at each position of an
            option, given the option's preceding tokens. Shorter options are padded with -1.
    """

    logprobs: list[np.ndarray]
    greedy: list[np.ndarray]

    def predicted(self) -> np.ndarray:
        """Index of the most probable option, int64 [C, n]; the first one, if several are equally probable."""
        return np.stack([logprobs.argmax(-1) for logprobs in self.logprobs], axis=1)

    def margins(self, gold: Sequence[int]) -> np.ndarray:
        """Log-probability of the gold option minus that of the best other option, float64 [C, n].

        With `EVERY` as gold, it is the log-probability of the most probable accepted answer.
        """
        columns = []
        for logprobs, index in zip(self.logprobs, gold, strict=True):
            if index == EVERY:
                columns.append(logprobs.max(-1).astype(np.float64))
                continue
            others = np.delete(logprobs, index, axis=-1).max(-1)
            columns.append(logprobs[:, index].astype(np.float64) - others)
        return np.stack(columns, axis=1)


def unit(row: Encoded) -> Unit:
    """The token sequences of a row, and the positions at which logits are read.

    There is one sequence for each option: the prompt and the option without its last token.
    """
    last = len(row.prompt) - 1
    return [([*row.prompt, *option[:-1]], range(last, last + len(option))) for option in row.options]


def read_options(packed: Pack, rows: Sequence[Encoded], logits: Tensor) -> Answers:
    """The answers to the rows of a pack.

    Args:
        rows: all rows that were packed. `packed.units` holds the indices of the rows in this pack.
        logits: [C, R, vocabulary], at the R read positions of the pack.

    Raises:
        InputError: a logit is NaN or infinite.
    """
    if not torch.isfinite(logits).all():
        raise InputError("model", "its logits are NaN or infinite")
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    top = logits.argmax(-1).cpu().numpy()
    answers = Answers([], [])
    for index in packed.units:
        options = rows[index].options
        last = len(rows[index].prompt) - 1
        sums = np.zeros((len(logits), len(options)), dtype=np.float32)
        greedy = np.full((len(logits), len(options), max(map(len, options))), -1, dtype=np.int64)
        for number, option in enumerate(options):
            reads = [packed.read_of[index, number, last + i] for i in range(len(option))]
            sums[:, number] = logprobs[:, reads, option].sum(-1).cpu().numpy()
            greedy[:, number, : len(option)] = top[:, reads]
        answers.logprobs.append(sums)
        answers.greedy.append(greedy)
    return answers


def per_character(logprobs: np.ndarray, options: Sequence[str]) -> np.ndarray:
    """Log-probabilities [.., options] divided by the number of characters of each option.

    One leading space is not counted. The option with the largest value is the prediction of `acc_norm` in
    lm-evaluation-harness.
    """
    lengths = [max(1, len(option.removeprefix(" "))) for option in options]
    return logprobs.astype(np.float64) / lengths


def exact_match(tokenizer: Any, option: str, greedy: Sequence[int]) -> bool:
    """Whether the greedy tokens decode to the option, ignoring case, spaces and punctuation (as in SADI)."""
    return _plain(tokenizer.decode([token for token in greedy if token >= 0])) == _plain(option)


def _plain(text: str) -> str:
    return (
        text.strip().strip(string.punctuation).strip().lower() or text.strip()
    )  # an option such as + is only punctuation


def answers_without(
    stack: DecoderStack,
    rows: Sequence[Encoded],
    layer: int,
    sets: Sequence[np.ndarray],
    *,
    projection: Projection = "gate_proj",
    precision: Precision = "float32",
) -> Answers:
    """Answers to all rows of C models, each with one set of neurons of `layer` silenced.

    Args:
        sets: C sets of neurons. A neuron is a row of `projection`.
    """
    by_row: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for packed in stack.pack([unit(row) for row in rows]):
        [part] = read_without(stack, [Without(stack.start(packed), layer, sets)], rows, projection, precision)
        by_row |= dict(zip(packed.units, zip(part.logprobs, part.greedy, strict=True), strict=True))
    return in_order(by_row)


def read_without(
    stack: DecoderStack,
    runs: Sequence[Without],
    rows: Sequence[Encoded],
    projection: Projection = "gate_proj",
    precision: Precision = "float32",
) -> list[Answers]:
    """The answers to the rows of each run's pack, in the order of the pack, from one sweep over the layers."""

    def read(share: float) -> list[Answers]:
        parts: list[list[Answers]] = [[] for _ in runs]
        for number, logits in all_logits_without(stack, runs, room(stack.model, share), projection, precision):
            parts[number].append(read_options(runs[number].residuals.pack, rows, logits))
        return [_joined(part) for part in parts]

    return with_less(read)


def _joined(parts: Sequence[Answers]) -> Answers:
    lists = [part.logprobs for part in parts], [part.greedy for part in parts]
    return Answers(*([np.concatenate(row) for row in zip(*each, strict=True)] for each in lists))


def side_by_side(answers: Sequence[Answers]) -> Answers:
    """Concatenates the answers of several groups of models to the same rows."""
    return answers[0] if len(answers) == 1 else _joined(answers)


def answers_unedited(stack: DecoderStack, rows: Sequence[Encoded]) -> Answers:
    """Answers of the unedited model. C is 1."""
    by_row: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    passes = [stack.start(packed) for packed in stack.pack([unit(row) for row in rows])]
    for residuals in passes:
        finish(stack, [residuals])
        part = read_options(residuals.pack, rows, residuals.logits[None])
        residuals.inputs.clear()
        by_row |= dict(zip(residuals.pack.units, zip(part.logprobs, part.greedy, strict=True), strict=True))
    return in_order(by_row)


def in_order(by_row: dict[int, tuple[np.ndarray, np.ndarray]]) -> Answers:
    """Answers in the order of the rows, from a mapping of row index to (log-probabilities, greedy tokens)."""
    return Answers(*([by_row[index][i] for index in range(len(by_row))] for i in (0, 1)))


def option_logprobs(loaded: Loaded, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Log-probability of each option given its prompt under the unedited model, float32 [options] for each row."""
    stack = DecoderStack(loaded.model)
    rows = [
        encode(loaded.tokenizer, prompt, choices, stack.context)
        for prompt, choices in zip(prompts, options, strict=True)
    ]
    return [logprobs[0] for logprobs in answers_unedited(stack, rows).logprobs]
