"""score: the scores of all neurons on the adaptation set, by default by integrated gradients."""

import sys
from functools import partial

import numpy as np
import pandas as pd

from tasks.method.algorithm import score_neurons
from tasks.method.attribute import Attributor, attributor_on, describe
from tasks.method.options import Attribution
from tasks.method.scores import Scores
from tasks.models.hashing import recorded_hash
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.files import read_jsonl, replacing, sha256_file
from tasks.runtime.journal import Journal, journal_key
from tasks.runtime.progress import progress
from tasks.runtime.work import run_parts, worker_pool


def score(cell: Cell) -> None:
    """Writes scores, completeness gaps and node counts of every layer; warns if an integral did not converge.

    The scores are signed; the header's `ranking` gives their order (`Scores.ranked`).
    """
    settings = cell.settings.attribution
    header = {
        **describe(settings),
        "samples_sha256": sha256_file(cell.samples),
        "model_sha256": recorded_hash(cell.model_dir),
        "n": len(read_jsonl(cell.samples)),
    }
    with worker_pool(partial(attributor, cell)) as workers:
        header["products"] = workers.attribute("products")
        header |= workers.attribute("experts")
        journal = Journal(cell.scratch / "score.jsonl", journal_key(header))
        parts = workers.attribute("parts")
        with progress("score", len(parts)) as advance:
            scores = score_neurons(partial(run_parts, workers, journal=journal), parts, header, advance)
    _warn(scores, settings)
    _tell_unreached(scores)
    with replacing(cell.scores) as temporary:
        temporary.write_bytes(scores.to_bytes())
    journal.remove()


def _warn(scores: Scores, settings: Attribution) -> None:
    """Warns about layers whose integral did not converge. NaN, for scores without an integral, compares as false."""
    if settings.method not in ("integrated_gradients", "deeplift") or scores.stability is None:
        return
    large_gap = scores.relative_error > settings.tolerance
    unsettled = ~large_gap & (scores.stability < settings.stability)
    for what, where in (
        ("completeness gap over attribution.tolerance", large_gap),
        ("ranking below attribution.stability", unsettled),
    ):
        if where.any():
            layers = np.flatnonzero(np.broadcast_to(where, len(scores.values))).tolist()
            print(f"warning: {what} in layers {layers}", file=sys.stderr)


def _tell_unreached(scores: Scores) -> None:
    """Prints the number of experts of a mixture of experts to which no token of the adaptation set is routed."""
    if experts := scores.header.get("experts"):
        number = sum(map(len, experts["unreached"]))
        print(
            f"experts: {number} of {scores.values.size // experts['each']} receive no token of the adaptation set; "
            f"their {number * experts['each']} neurons have the score 0 and come last"
        )


def attributor(cell: Cell) -> Attributor:
    """The attribution on the adaptation set."""
    loaded, samples = load(cell.model_dir), pd.DataFrame(read_jsonl(cell.samples))
    return attributor_on(DecoderStack(loaded.model), loaded.tokenizer, samples, cell.settings.attribution)


if __name__ == "__main__":
    run_step(score, description=__doc__)
