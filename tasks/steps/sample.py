"""sample: draw the adaptation set, the few train rows that the method uses."""

import json
import sys

from tasks.benchmarks.table import encode_rows, read_split
from tasks.evidence.preflight_note import warning
from tasks.method.adaptation_set import draw, draw_unlabeled
from tasks.method.preflight import preflight
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.files import write_json, write_jsonl


def sample(cell: Cell) -> None:
    """Writes the `adaptation.size` rows of the train split with the smallest seeded hashes of prompt and options.

    With `selection: correct` or `wrong`, only rows that the unpruned model answers correctly or wrongly. Adding or
    removing k rows of the split changes at most k rows of the set. Writes the next `adaptation.unlabeled` rows without
    their labels, too, and how the unpruned model answers all of these rows; warns where it answers with one option.

    Raises:
        InputError: as `draw`; or a test row for `evaluate` or `transfer` does not fit the model.
    """
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    limits = cell.benchmark_spec.limits
    tested = read_split(cell.test, max(limits.test, limits.transfer))
    encode_rows(tested, loaded.tokenizer, stack.context, warn=False)  # fails now instead of hours later
    train, settings = read_split(cell.train), cell.settings.adaptation
    chosen = draw(train, stack, loaded.tokenizer, settings)
    unlabeled = draw_unlabeled(train, chosen, stack, loaded.tokenizer, settings)
    answers = preflight(stack, loaded.tokenizer, chosen, unlabeled)
    if line := warning(answers):
        print(f"warning: {line}", file=sys.stderr)
    write_json(cell.preflight, answers)
    write_jsonl(cell.unlabeled, json.loads(unlabeled.to_json(orient="records")))
    write_jsonl(cell.samples, json.loads(chosen.to_json(orient="records")))


if __name__ == "__main__":
    run_step(sample, description=__doc__)
