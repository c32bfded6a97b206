"""Study `timing`: seconds per example of the scores, of one step of fine-tuning, and of the search."""

import time
from collections.abc import Callable

import pandas as pd
import torch

from tasks.comparison.finetuning import answer_loss
from tasks.method.algorithm import score_rows
from tasks.runtime.files import read_jsonl
from tasks.studies.adapting import with_changes
from tasks.studies.context import Record, StudyContext


def timing(context: StudyContext) -> list[Record]:
    """Wall-clock seconds on this machine, measured once on the cell's adaptation set after a warm-up pass."""
    rows, attribution = context.samples, context.settings.attribution
    number = len(rows.gold)
    table = pd.DataFrame(read_jsonl(context.cell.samples))
    fixed = with_changes(attribution, method="integrated_gradients", quadrature="riemann_right", steps=20, path="layer")

    def fine_tune() -> None:
        model = context.loaded.model
        model.requires_grad_(True)
        try:
            with torch.enable_grad():
                for row, gold in zip(rows.encoded, rows.gold, strict=True):
                    answer_loss(model, row, gold).backward()  # type: ignore[no-untyped-call]
        finally:
            model.requires_grad_(False)
            for parameter in model.parameters():
                parameter.grad = None

    layers, tokenizer, search = len(context.stack), context.loaded.tokenizer, context.settings.search
    strategy = "" if search.strategy == "exhaustive" else f", {search.strategy}"
    timed: list[tuple[str, Callable[[], object]]] = [
        ("fine-tuning, forward and backward", fine_tune),
        ("scores, the paper's rule (20 steps)", lambda: score_rows(context.stack, tokenizer, table, fixed)),
        ("scores, as configured", lambda: score_rows(context.stack, tokenizer, table, attribution)),
        (f"search, {layers} layers × {len(search.fractions)} fractions{strategy}",
         lambda: context.search(rows)),
    ]  # fmt: skip
    fine_tune()
    records = []
    for label, run in timed:
        started = time.monotonic()
        run()
        seconds = time.monotonic() - started
        records.append(Record(label, seconds / number, n=number, more={"seconds in all": round(seconds, 1)}))
    return records
