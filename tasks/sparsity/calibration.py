"""Calibration sets: n sequences of token ids drawn from texts, or made of a benchmark's prompts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.benchmarks.encoding import check_known, encode_prompt
from tasks.benchmarks.table import chat_column
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_jsonl, sha256_json

DOCUMENT = 2000  # characters from which a text counts as a long one


@dataclass(frozen=True)
class Calibration:
    """Calibration sequences and where they come from.

    Attributes:
        name: of the texts, such as "c4".
        sequences: token ids.
        length: L, the tokens of a sequence; of one made of whole prompts the most that it may have.
        seed: of the draw.
    """

    name: str
    sequences: list[list[int]]
    length: int
    seed: int

    @property
    def sha256(self) -> str:
        """Of the token ids: what the statistics depend on, however the texts were cut into files."""
        return sha256_json(self.sequences)


def read_texts(path: Path) -> list[str]:
    """Texts in a file: `text` of each row of a JSONL file, else the lines of a text file, blank ones as "".

    That is how the rows of WikiText-2 look on the hub: a line with its line feed each.

    Raises:
        InputError: not there, not UTF-8, not JSONL with a `text` in every row, or empty.
    """
    try:
        if path.suffix == ".jsonl":
            texts = [row["text"] for row in read_jsonl(path)]
        else:
            with path.open(encoding="utf-8", newline="\n") as lines:
                texts = [line if line.strip() else "" for line in lines]
    except OSError as error:
        raise InputError(str(path), error.strerror or "cannot be read") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(str(path), "is not UTF-8 text, or not JSON lines with a `text` in each") from None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(str(path), "has no texts")
    return texts


def from_documents(
    tokenizer: Any, texts: Sequence[str], *, name: str, count: int, length: int, seed: int
) -> Calibration:
    """`count` windows of `length` tokens, each from another document that is longer: C4.

    The documents are gone through in random order. The published code draws them with replacement from the first file
    of C4; here a smaller file gives no window of a document twice.

    Raises:
        InputError: too few documents are longer than `length` tokens, or a token is not one of the model's.
    """
    _check(count, length)
    rng = random.Random(seed)
    sequences: list[list[int]] = []
    for index in rng.sample(range(len(texts)), len(texts)):
        ids = tokenizer(texts[index])["input_ids"]
        if len(ids) > length:
            sequences.append(_window(rng, ids, length))
            check_known(tokenizer, sequences[-1])
        if len(sequences) == count:
            return Calibration(name, sequences, length, seed)
    raise InputError(
        "calibration", f"{name} has {len(sequences)} documents of more than {length} tokens; {count} are asked for"
    )


def from_stream(tokenizer: Any, texts: Sequence[str], *, name: str, count: int, length: int, seed: int) -> Calibration:
    """`count` windows of `length` tokens from anywhere in the texts joined by spaces, as published for WikiText-2.

    Raises:
        InputError: the texts together are not longer than `length` tokens, or a token is not one of the model's.
    """
    _check(count, length)
    ids = tokenizer(" ".join(texts))["input_ids"]
    if len(ids) <= length:
        raise InputError("calibration", f"{name} has {len(ids)} tokens; sequences of {length} need more")
    check_known(tokenizer, ids)
    rng = random.Random(seed)
    return Calibration(name, [_window(rng, ids, length) for _ in range(count)], length, seed)


def from_texts(tokenizer: Any, texts: Sequence[str], *, name: str, count: int, length: int, seed: int) -> Calibration:
    """`from_documents` where more than a quarter of the texts are long ones, as in C4, else `from_stream`.

    Raises:
        InputError: as either.
    """
    documents = sum(len(text) > DOCUMENT for text in texts) > len(texts) / 4
    make = from_documents if documents else from_stream
    return make(tokenizer, texts, name=name, count=count, length=length, seed=seed)


def from_prompts(
    prompts: Sequence[Sequence[int]], *, name: str, count: int, length: int, seed: int, fewer: bool = False
) -> Calibration:
    """`count` sequences of whole prompts one after the other, each with as many as fit into `length` tokens.

    The prompts are taken in random order, none twice, and one that is longer than `length` is left out.

    Args:
        prompts: token ids (`tasks.benchmarks.encoding.encode_prompt`).
        fewer: where the prompts are used up before, as many sequences as they fill.

    Raises:
        InputError: the prompts are used up before, or fill none.
    """
    _check(count, length)
    rng = random.Random(seed)
    sequences: list[list[int]] = []
    current: list[int] = []
    for index in rng.sample(range(len(prompts)), len(prompts)):
        prompt = list(prompts[index])
        if not 0 < len(prompt) <= length:
            continue
        if len(current) + len(prompt) > length:
            sequences.append(current)
            current = []
            if len(sequences) == count:
                break
        current += prompt
    if current and len(sequences) < count:
        sequences.append(current)
    if len(sequences) < count and not (fewer and sequences):
        raise InputError(
            "calibration", f"the prompts of {name} fill {len(sequences)} sequences of {length} tokens, not {count}"
        )
    return Calibration(name, sequences, length, seed)


def encode_prompts(table: pd.DataFrame, tokenizer: Any, context: int) -> list[list[int]]:
    """Token ids of the prompts of a benchmark's rows, as `tasks.benchmarks.table.encode_rows` has them.

    Raises:
        InputError: a prompt is empty, or longer than the model's context.
    """
    return [
        encode_prompt(tokenizer, prompt, context, chat=chat)
        for prompt, chat in zip(table["prompt"], chat_column(table), strict=True)
    ]


def _check(count: int, length: int) -> None:
    if count < 1 or length < 1:
        raise InputError("calibration", f"{count} sequences of {length} tokens; both must be positive")


def _window(rng: random.Random, ids: list[int], length: int) -> list[int]:
    start = rng.randrange(len(ids) - length)
    return ids[start : start + length]
