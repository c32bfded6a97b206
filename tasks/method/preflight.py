"""The answers of the unpruned model to a few train rows.

They show, before hours are spent, if the model answers all rows of a task with the same option.
"""

from typing import Any

import numpy as np
import pandas as pd

from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.table import encode_rows
from tasks.models.stack import DecoderStack


def preflight(stack: DecoderStack, tokenizer: Any, examples: pd.DataFrame, unlabeled: pd.DataFrame) -> dict[str, Any]:
    """The unpruned model's answers to the adaptation set and to other train rows.

    Args:
        examples: the adaptation set.
        unlabeled: other train rows; their labels are not used.

    Returns:
        `n`: the number of rows; `labeled`: how many of them have a label; `accuracy`: on these; `predicted`: for each
        position, how often that option is the most probable one; `options`: their texts, None if they differ by row.
    """
    table = pd.concat([examples, unlabeled], ignore_index=True).drop(columns="gold")
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
