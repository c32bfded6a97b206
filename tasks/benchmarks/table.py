"""The rows of a benchmark as the `data` step wrote them, encoded for a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.benchmarks.encoding import Encoded, encode
from tasks.pipeline.errors import InputError


@dataclass(frozen=True)
class Rows:
    """n rows: the table (id, prompt, options, gold) and the token ids of each."""

    table: pd.DataFrame
    encoded: list[Encoded]

    @property
    def gold(self) -> list[int]:
        return self.table["gold"].tolist()


def read_split(path: Path, limit: int | None = None) -> pd.DataFrame:
    """One split, or its first `limit` rows; the `data` step has put the test rows in random order."""
    return pd.read_parquet(path).head(limit) if limit else pd.read_parquet(path)


def encode_rows(table: pd.DataFrame, tokenizer: Any, context: int) -> Rows:
    """The rows with their token ids.

    Raises:
        InputError: naming the row that does not fit the model, and why.
    """
    encoded = []
    for name, prompt, options in zip(table["id"], table["prompt"], table["options"], strict=True):
        try:
            encoded.append(encode(tokenizer, prompt, list(options), context))
        except InputError as error:
            raise InputError(f"row {name}: {error.field}", error.problem) from None
    return Rows(table, encoded)
