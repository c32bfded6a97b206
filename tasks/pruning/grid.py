"""The grid: accuracy and gold margin of every (layer, fraction), on given rows (2507.09185 Alg. 1)."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.scoring import read_options, unit
from tasks.models.stack import DecoderStack
from tasks.pipeline.journal import Journal
from tasks.pruning.masks import count, scales, top_neurons

UNPRUNED = -1  # the layer of the row that stands for the model as it is
COLUMNS = {"layer": "int64", "fraction": "float64", "neurons": "int64", "accuracy": "float64", "margin": "float64"}


def empty_grid() -> pd.DataFrame:
    """A grid of no rows, with the columns and types of one."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})


def grid(
    stack: DecoderStack,
    rows: Sequence[Encoded],
    gold: Sequence[int],
    scores: np.ndarray,
    fractions: Sequence[float],
    *,
    journal: Journal,
    advance: Callable[[int], None],
) -> pd.DataFrame:
    """Accuracy and mean gold margin of every layer x fraction, and of the unpruned model (layer -1, fraction 0).

    All fractions of a layer run as one batch from the residual that enters its MLP.

    Args:
        gold: index of the right option of each row.
        scores: float32 [layers, d_ff].
        journal: holds the parts that are done, named "<pack> <layer>"; they are not run again.
        advance: called with the number of rows x layers done.

    Returns:
        Columns `layer`, `fraction`, `neurons`, `accuracy`, `margin`.
    """
    masks = {
        layer: scales([top_neurons(scores[layer], count(p, stack.d_ff)) for p in fractions], stack.d_ff)
        for layer in range(len(stack))
    }
    sums: dict[int, np.ndarray] = {}
    for number, packed in enumerate(stack.pack([unit(row) for row in rows])):
        residuals = None
        wanted = [gold[index] for index in packed.units]
        for layer in (UNPRUNED, *masks):
            name = f"{number} {layer}"
            if name not in journal.parts:
                residuals = residuals or stack.clean(packed)
                logits = residuals.logits[None]
                if layer != UNPRUNED:
                    logits = stack.predict(residuals, layer, masks[layer])
                answers = read_options(packed, rows, logits)
                right = (answers.predicted() == np.array(wanted)).sum(1)
                journal.put(name, [right.tolist(), answers.margins(wanted).sum(1).tolist()])
            part = np.array(journal.parts[name])
            sums[layer] = sums.get(layer, 0) + part
            if layer != UNPRUNED:
                advance(len(wanted))
    return _frame(sums, fractions, stack.d_ff, len(rows))


def _frame(sums: dict[int, np.ndarray], fractions: Sequence[float], d_ff: int, rows: int) -> pd.DataFrame:
    records = []
    for layer, (right, margin) in sums.items():
        for i, fraction in enumerate([0.0] if layer == UNPRUNED else fractions):
            records.append((layer, fraction, count(fraction, d_ff), right[i] / rows, margin[i] / rows))
    return pd.DataFrame(records, columns=list(COLUMNS)).astype(COLUMNS)
