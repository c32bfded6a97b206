"""How the unpruned model answers a few train rows: before hours are spent on a task that it answers with one option."""

from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.table import encode_rows
from tasks.method.adaptation_set import draw
from tasks.method.options import Adaptation
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError

UNLABELED = 30  # train rows beside the adaptation set; their labels are not used


def preflight(
    stack: DecoderStack, tokenizer: Any, train: pd.DataFrame, examples: pd.DataFrame, seed: int
) -> dict[str, Any]:
    """The unpruned model's answers to the adaptation set and to other train rows.

    Args:
        train: the train split; up to 30 of its rows outside the adaptation set are answered, drawn as that is.
        examples: the adaptation set.
        seed: of the draw.

    Returns:
        `n` rows in all, of them `labeled` ones with `accuracy`; `predicted`: how often each option, by its position, is
        the most probable one; `options`: their texts, None where they differ from row to row.
    """
    others = train[~train["id"].isin(examples["id"])]
    table = examples
    if size := min(UNLABELED, len(others)):
        # Of rows that do not fit the model nothing is said here: the run does not need them.
        with suppress(InputError):
            drawn = draw(others, stack, tokenizer, Adaptation(size=size, seed=seed))
            table = pd.concat([examples, drawn], ignore_index=True)
    rows = encode_rows(table, tokenizer, stack.context, warn=False)
    predicted = answers_unedited(stack, rows.encoded).predicted()[0]
    options = rows.table["options"].map(tuple)
    return {
        "n": len(predicted),
        "labeled": len(examples),
        "accuracy": float((predicted[: len(examples)] == examples["gold"].to_numpy()).mean()),
        "predicted": np.bincount(predicted, minlength=options.map(len).max()).tolist(),
        "options": list(options.iloc[0]) if options.nunique() == 1 else None,
    }
