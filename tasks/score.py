"""score: the score of every neuron on the adaptation set, by default by integrated gradients."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from safetensors.torch import save

from tasks.attribution.attribute import Attributor, Part, assemble, describe, needs_options
from tasks.attribution.quadrature import allowed
from tasks.benchmarks.encoding import encode, encode_prompt
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.files import read_jsonl, replacing, sha256_file
from tasks.pipeline.journal import Journal, journal_key
from tasks.pipeline.progress import progress
from tasks.pipeline.settings import Attribution
from tasks.pipeline.step import run_step
from tasks.pipeline.work import crew, run_parts


def score(cell: Cell) -> None:
    """Writes scores, completeness gaps and node counts of every layer; warns where the integral did not converge.

    The scores are signed; the header's `ranking` says how to order them (`tasks.pruning.masks.read_ranking`).
    """
    settings = cell.settings.attribution
    header = {
        **describe(settings),
        "samples_sha256": sha256_file(cell.samples),
        "model_sha256": sha256_directory(cell.model_dir),
        "n": len(read_jsonl(cell.samples)),
    }
    journal = Journal(cell.scratch / "score.jsonl", journal_key(header))
    with crew(partial(attributor, cell)) as workers:
        parts = workers.ask("parts")
        with progress("score", len(parts)) as advance:
            values = run_parts(workers, parts, journal, advance)
    _warn(values, settings)
    with replacing(cell.scores) as temporary:
        # One key: the format does not fix the order of several, and the bytes must not change from run to run.
        metadata = {"header": json.dumps(header, sort_keys=True)}
        temporary.write_bytes(save(assemble(list(values.values())), metadata=metadata))
    journal.remove()


def _warn(values: dict[Part, dict[str, Any]], settings: Attribution) -> None:
    """Names the layers whose integral did not converge. Nothing is over or below NaN: what is no integral has none."""
    if settings.method != "integrated_gradients":
        return
    rough: list[int] = []
    unsettled: list[int] = []
    for part, value in values.items():
        if value["error"] > allowed(value["difference"], settings.tolerance):
            rough += part
        elif value["stability"] < settings.stability:
            unsettled += part
    if rough:
        print(f"warning: completeness gap over attribution.tolerance in layers {rough}", file=sys.stderr)
    if unsettled:
        print(f"warning: ranking below attribution.stability in layers {unsettled}", file=sys.stderr)


def attributor(cell: Cell) -> Attributor:
    """The attribution on the adaptation set."""
    loaded, samples = load(cell.model_dir), read_jsonl(cell.samples)
    return attributor_on(DecoderStack(loaded.model), loaded.tokenizer, samples, cell.settings.attribution)


def attributor_on(
    stack: DecoderStack, tokenizer: Any, samples: Sequence[dict[str, Any]], settings: Attribution
) -> Attributor:
    """The attribution on given rows, each with `prompt`, `options` and, where it is true, `chat`."""
    if not needs_options(settings):
        return Attributor(stack, [_prompt(tokenizer, row, stack.context) for row in samples], settings)
    rows = [_up_to_options(tokenizer, row, stack.context) for row in samples]
    return Attributor(stack, [prompt for prompt, _ in rows], settings, [firsts for _, firsts in rows])


def _prompt(tokenizer: Any, row: dict[str, Any], context: int) -> list[int]:
    return encode_prompt(tokenizer, row["prompt"], context, chat=row.get("chat", False))


def _up_to_options(tokenizer: Any, row: dict[str, Any], context: int) -> tuple[list[int], list[int]]:
    """The prompt as it is read when options are scored, with the white space it ends in; each option's first token."""
    found = encode(tokenizer, row["prompt"], row["options"], context, chat=row.get("chat", False))
    return found.prompt + found.options[0][: found.given], [option[found.given] for option in found.options]


if __name__ == "__main__":
    run_step(score, description=__doc__)
