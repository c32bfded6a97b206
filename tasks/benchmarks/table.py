"""The rows of a benchmark as the `data` step wrote them, encoded for a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
    """One split. With a limit, that many rows drawn from all of it, in file order.

    The draw is the same every time, and a smaller limit takes a part of what a larger one takes.
    """
    table = pd.read_parquet(path)
    if limit is None or limit >= len(table):
        return table
    order = np.random.default_rng(0).permutation(len(table))
    return table.iloc[np.sort(order[:limit])].reset_index(drop=True)


def encode_rows(table: pd.DataFrame, tokenizer: Any, context: int) -> Rows:
    """The rows with their token ids.

    Raises:
        InputError: naming the row that does not fit the model, and why.
    """
    encoded = []
    rows: Sequence[tuple[str, str, Sequence[str]]] = list(
        zip(table["id"], table["prompt"], table["options"], strict=True)
    )
    for name, prompt, options in rows:
        try:
            encoded.append(encode(tokenizer, prompt, list(options), context))
        except InputError as error:
            raise InputError(f"row {name}: {error.field}", error.problem) from None
    return Rows(table, encoded)
