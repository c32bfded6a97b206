"""The rows of a benchmark as the `data` step wrote them, encoded for a model."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.benchmarks.encoding import Encoded, begins_another, encode
from tasks.benchmarks.scoring import Answers, exact_match
from tasks.runtime.errors import InputError


@dataclass(frozen=True)
class Rows:
    """n rows: the table and the token ids of each.

    The columns are id, prompt, options and gold, and chat, the date that a chat template is told, where one is used.
    """

    table: pd.DataFrame
    encoded: list[Encoded]

    @property
    def gold(self) -> list[int]:
        return self.table["gold"].tolist()


def read_split(path: Path, limit: int | None = None) -> pd.DataFrame:
    """One split, or its first `limit` rows; the `data` step has put the test rows in the order of hashes."""
    return pd.read_parquet(path).head(limit) if limit else pd.read_parquet(path)


def encode_rows(table: pd.DataFrame, tokenizer: Any, context: int, *, warn: bool = True) -> Rows:
    """The rows with their token ids. Warns about rows that are cut or answered otherwise than one would think.

    Args:
        warn: False is for a step that only looks whether the rows fit, where another step will warn.

    Raises:
        InputError: naming the row that does not fit the model, and why.
    """
    shared = table["options"].map(tuple).nunique() == 1
    chats = table["chat"] if "chat" in table else [False] * len(table)
    encoded: list[Encoded] = []
    overlapping = 0
    for name, prompt, options, chat in zip(table["id"], table["prompt"], table["options"], chats, strict=True):
        try:
            row = encode(tokenizer, prompt, list(options), context, chat=chat)
        except InputError as error:
            raise InputError(f"row {name}: {error.field}", error.problem) from None
        if pair := begins_another(row):
            if shared:
                first, second = (options[i] for i in pair)
                raise InputError(f"row {name}: options", f"the tokens of {first!r} begin those of {second!r}")
            overlapping += 1
        encoded.append(row)
    if overlapping and warn:
        _warn(overlapping, len(table), "the tokens of one option begin those of another, which so cannot be chosen")
    if warn and (merged := sum(row.merged for row in encoded)):
        _warn(merged, len(table), "this tokenizer joins the end of the prompt and the option into other tokens")
    return Rows(table, encoded)


def exact_matches(tokenizer: Any, rows: Rows, answers: Answers, model: int) -> npt.NDArray[np.bool_]:
    """Which rows one of the models answers in words with the right option (`scoring.exact_match`), bool [n].

    White space that the prompt ends in is written, not predicted.
    """
    asked = zip(rows.table["options"], rows.gold, answers.greedy, rows.encoded, strict=True)
    return np.array(
        [
            exact_match(tokenizer, options[gold], greedy[model, gold, row.given :].tolist())
            for options, gold, greedy, row in asked
        ]
    )


def _warn(count: int, rows: int, what: str) -> None:
    print(f"warning: in {count} of {rows} rows, {what}", file=sys.stderr, flush=True)
