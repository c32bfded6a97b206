"""sample: draw the adaptation set, the few train rows that the method may look at."""

import json

import pandas as pd

from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.table import encode_rows, read_split
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import write_jsonl
from tasks.pipeline.progress import progress
from tasks.pipeline.settings import Adaptation
from tasks.pipeline.step import run_step


def sample(cell: Cell) -> None:
    """Writes `adaptation.size` rows of the train split, in the order of a seeded permutation.

    With `selection: correct` or `wrong`, those that the unpruned model gets right or wrong, in the same order.

    Raises:
        InputError: as `draw`; or a test row that `evaluate` or `transfer` will read does not fit the model.
    """
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    limits = cell.benchmark_spec.limits
    tested = read_split(cell.test, max(limits.test, limits.transfer))
    encode_rows(tested, loaded.tokenizer, stack.context, warn=False)  # not hours later, in `evaluate` or `transfer`
    chosen = draw(read_split(cell.train), stack, loaded.tokenizer, cell.settings.adaptation)
    write_jsonl(cell.samples, json.loads(chosen.to_json(orient="records")))


def draw(train: pd.DataFrame, stack: DecoderStack, tokenizer: object, settings: Adaptation) -> pd.DataFrame:
    """The adaptation set out of the train split.

    Raises:
        InputError: there are too few rows of the kind, or one of them cannot be used.
    """
    train = train.sample(frac=1, random_state=settings.seed).reset_index(drop=True)
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


def _selected(train: pd.DataFrame, stack: DecoderStack, tokenizer: object, right: bool, size: int) -> pd.DataFrame:
    found = train.head(0)
    with progress("sample", size) as advance:
        for start in range(0, len(train), 4 * size):
            rows = encode_rows(train.iloc[start : start + 4 * size], tokenizer, stack.context)
            predicted = answers_unedited(stack, rows.encoded).predicted()[0]
            kept = rows.table[(predicted == rows.table["gold"]) == right]
            advance(min(len(kept), size - len(found)))
            found = pd.concat([found, kept])
            if len(found) >= size:
                break
    return found.head(size)


if __name__ == "__main__":
    run_step(sample, description=__doc__)
