"""Calibration sets: sequences of token ids from texts or from a benchmark's prompts."""

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

DOCUMENT = 2000  # characters; a longer text is a document


@dataclass(frozen=True)
class Calibration:
    """Calibration sequences and their origin.

    Attributes:
        name: the name of the texts, such as "c4".
        sequences: token ids.
        length: the number of tokens of a sequence; the maximum for sequences of whole prompts.
        seed: the seed of the draw.
    """

    name: str
    sequences: list[list[int]]
    length: int
    seed: int

    @property
    def sha256(self) -> str:
        """Hash of the token ids."""
        return sha256_json(self.sequences)


def read_texts(path: Path) -> list[str]:
    """The texts of a file: `text` of each row of a JSONL file, or the lines of a text file.

    Lines keep their line feed, and blank lines become "", as in the rows of WikiText-2 on the hub.

    Raises:
        InputError: the file does not exist, is not UTF-8, is not JSONL with a `text` in every row, or has no texts.
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
        raise InputError(str(path), "is not UTF-8 text, or not JSONL with a `text` in every row") from None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(str(path), "has no texts")
    return texts


def from_documents(
    tokenizer: Any, texts: Sequence[str], *, name: str, count: int, length: int, seed: int
) -> Calibration:
    """`count` windows of `length` tokens, each from a different, longer document, as for C4.

    The documents are tried in random order. The published code draws them with replacement from the first file of C4;
    here a document is used at most once.

    Raises:
        InputError: too few documents are longer than `length` tokens, or a token has no embedding.
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
        "calibration", f"{name} has {len(sequences)} documents of more than {length} tokens; {count} are needed"
    )


def from_stream(tokenizer: Any, texts: Sequence[str], *, name: str, count: int, length: int, seed: int) -> Calibration:
    """`count` windows of `length` tokens at random positions of the texts joined by spaces, as for WikiText-2.

    Raises:
        InputError: the joined texts are not longer than `length` tokens, or a token has no embedding.
    """
    _check(count, length)
    ids = tokenizer(" ".join(texts))["input_ids"]
    if len(ids) <= length:
        raise InputError("calibration", f"{name} has {len(ids)} tokens; sequences of {length} need more")
    check_known(tokenizer, ids)
    rng = random.Random(seed)
    return Calibration(name, [_window(rng, ids, length) for _ in range(count)], length, seed)


def from_texts(tokenizer: Any, texts: Sequence[str], *, name: str, count: int, length: int, seed: int) -> Calibration:
    """`from_documents` if more than a quarter of the texts are documents, as in C4, else `from_stream`.

    Raises:
        InputError: as for these functions.
    """
    documents = sum(len(text) > DOCUMENT for text in texts) > len(texts) / 4
    make = from_documents if documents else from_stream
    return make(tokenizer, texts, name=name, count=count, length=length, seed=seed)


def from_prompts(
    prompts: Sequence[Sequence[int]], *, name: str, count: int, length: int, seed: int, fewer: bool = False
) -> Calibration:
    """`count` sequences of concatenated whole prompts, each with as many as fit into `length` tokens.

    The prompts are taken in random order without replacement. Prompts longer than `length` are left out.

    Args:
        prompts: token ids (`tasks.benchmarks.encoding.encode_prompt`).
        fewer: allow fewer sequences than `count` if there are too few prompts.

    Raises:
        InputError: there are too few prompts.
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
    """Token ids of the prompts of a benchmark's rows, without their options.

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
