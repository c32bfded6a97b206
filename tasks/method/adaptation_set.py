"""The adaptation set: the few train rows that the method may look at."""

import pandas as pd

from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.splits import hash_position
from tasks.benchmarks.table import encode_rows
from tasks.method.options import Adaptation
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tasks.runtime.progress import progress


def draw(train: pd.DataFrame, stack: DecoderStack, tokenizer: object, settings: Adaptation) -> pd.DataFrame:
    """The adaptation set out of the train split.

    Raises:
        InputError: there are too few rows that match `settings`, or one of them cannot be used.
    """
    asked = zip(train["prompt"], train["options"], strict=True)
    positions = [hash_position("adaptation", settings.seed, prompt, list(options)) for prompt, options in asked]
    train = train.iloc[sorted(range(len(train)), key=positions.__getitem__)].reset_index(drop=True)
    if settings.selection == "random":
        chosen = train.head(settings.size)
    else:
        chosen = _selected(train, stack, tokenizer, settings.selection == "correct", settings.size)
    if len(chosen) < settings.size:
        kind = "" if settings.selection == "random" else f" that the model gets {settings.selection}"
        raise InputError("adaptation.size", f"{settings.size}, but the train split has {len(chosen)} rows{kind}")
    encode_rows(chosen, tokenizer, stack.context)  # refuses what the later steps could not use..
    if not chosen["prompt"].str.strip().all():  # ..and here `score`
        raise InputError("prompt", "is empty in some of the rows: there is nothing to attribute an answer to")
    return chosen


def draw_unlabeled(
    train: pd.DataFrame, chosen: pd.DataFrame, stack: DecoderStack, tokenizer: object, settings: Adaptation
) -> pd.DataFrame:
    """Up to `settings.unlabeled` train rows outside the adaptation set, drawn in the same way, without the column gold.

    Empty if one of them does not fit the model, since a run with the paper's criterion does not need them.
    """
    others = train[~train["id"].isin(chosen["id"])]
    wanted = Adaptation(size=min(settings.unlabeled, max(1, len(others))), seed=settings.seed)
    try:
        drawn = draw(others, stack, tokenizer, wanted)
    except InputError:
        drawn = others.head(0)
    return drawn.drop(columns="gold")


def _selected(train: pd.DataFrame, stack: DecoderStack, tokenizer: object, right: bool, size: int) -> pd.DataFrame:
    selected = train.head(0)
    with progress("sample", size) as advance:
        for start in range(0, len(train), 4 * size):
            rows = encode_rows(train.iloc[start : start + 4 * size], tokenizer, stack.context)
            predicted = answers_unedited(stack, rows.encoded).predicted()[0]
            kept = rows.table[(predicted == rows.table["gold"]) == right]
            advance(min(len(kept), size - len(selected)))
            selected = pd.concat([selected, kept])
            if len(selected) >= size:
                break
    return selected.head(size)
