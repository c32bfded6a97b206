"""The rows that the `data` step wrote, encoded for a model."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.benchmarks.benchmark_spec import EVERY
from tasks.benchmarks.encoding import Encoded, encode, prefix_pair
from tasks.benchmarks.scoring import Answers, exact_match
from tasks.runtime.errors import InputError


@dataclass(frozen=True)
class Rows:
    """n rows: the table and the token ids of each.

    The columns are id, prompt, options and gold (`EVERY` for free answers); with a chat template also chat, its date.
    """

    table: pd.DataFrame
    encoded: list[Encoded]

    @property
    def gold(self) -> list[int]:
        return self.table["gold"].tolist()

    @property
    def labeled(self) -> bool:
        """Whether the rows have the column gold. The unlabelled rows that a criterion reads do not have it."""
        return "gold" in self.table

    @property
    def chat(self) -> list[str | Literal[False]]:
        """The chat template of each row, for `encode`."""
        return chat_column(self.table)


def chat_column(table: pd.DataFrame) -> list[str | Literal[False]]:
    """The chat template of each row, for `encode`: a date, or False without a chat template."""
    return table["chat"].tolist() if "chat" in table else [False] * len(table)


def read_split(path: Path, limit: int | None = None) -> pd.DataFrame:
    """One split, or its first `limit` rows. Test rows are in the order of `splits`."""
    return pd.read_parquet(path).head(limit) if limit else pd.read_parquet(path)


def encode_rows(table: pd.DataFrame, tokenizer: Any, context: int, *, warn: bool = True) -> Rows:
    """The rows with their token ids. Warns about rows with unusual token boundaries or options.

    Args:
        warn: False for a step that only checks the rows, before another step warns.

    Raises:
        InputError: a row does not fit the model; the message names the row and the reason.
    """
    shared = table["options"].map(tuple).nunique() == 1
    encoded: list[Encoded] = []
    overlapping = 0
    free = table["gold"] == EVERY if "gold" in table else [False] * len(table)
    columns = (table["id"], table["prompt"], table["options"], free, chat_column(table))
    for name, prompt, options, accepted, chat in zip(*columns, strict=True):
        try:
            row = encode(tokenizer, prompt, list(options), context, chat=chat)
        except InputError as error:
            raise InputError(f"row {name}: {error.field}", error.problem) from None
        if not accepted and (pair := prefix_pair(row)):  # an accepted answer may begin another one
            if shared:
                first, second = (options[i] for i in pair)
                raise InputError(f"row {name}: options", f"the tokens of {second!r} begin with those of {first!r}")
            overlapping += 1
        encoded.append(row)
    if overlapping and warn:
        _warn(
            overlapping,
            len(table),
            "the tokens of one option begin with those of another, so it cannot be chosen",
        )
    if warn and (merged := sum(row.merged for row in encoded)):
        _warn(merged, len(table), "the tokenizer merges the end of the prompt with the option into other tokens")
    return Rows(table, encoded)


def exact_matches(tokenizer: Any, rows: Rows, answers: Answers, model: int) -> npt.NDArray[np.bool_]:
    """Whether one of the models answers each row with exactly the right option (`scoring.exact_match`), bool [n].

    With free answers, any accepted answer is right. White space from the end of the prompt is given, not predicted.
    """
    asked = zip(rows.table["options"], rows.gold, answers.greedy, rows.encoded, strict=True)
    return np.array(
        [
            any(
                exact_match(tokenizer, options[right], greedy[model, right, row.given :].tolist())
                for right in (range(len(options)) if gold == EVERY else [gold])
            )
            for options, gold, greedy, row in asked
        ]
    )


def exact_on(tokenizer: Any, rows: Rows) -> Callable[[Answers, Sequence[int]], npt.NDArray[np.bool_]]:
    """`exact_matches` of all models on some of these rows, whose answers are given, bool [C, n]."""

    def exact(answers: Answers, units: Sequence[int]) -> npt.NDArray[np.bool_]:
        part = Rows(rows.table.iloc[list(units)], [rows.encoded[unit] for unit in units])
        return np.stack([exact_matches(tokenizer, part, answers, model) for model in range(len(answers.logprobs[0]))])

    return exact


def _warn(count: int, rows: int, what: str) -> None:
    print(f"warning: in {count} of {rows} rows, {what}", file=sys.stderr, flush=True)
