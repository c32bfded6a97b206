"""nsa: which words neurons respond to and which pruning silences, in nsa.json, nsa.safetensors and nsa.html."""

import json
from typing import Any

import numpy as np
from safetensors.numpy import save

from tasks.benchmarks.table import encode_rows, read_split
from tasks.method.recipe import read_recipe
from tasks.models.hashing import recorded_hash
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.cell_pages import made_of, write_page
from tasks.pipeline.runs import NsaRun
from tasks.pipeline.step import run_step
from tasks.runtime.errors import InputError
from tasks.runtime.files import sha256_file
from tasks.runtime.journal import Journal, journal_key
from tasks.semantics.activations import word_activations, word_positions
from tasks.semantics.findings import MINIMUM, find_influences, findings, pruned_models, split_words, stability
from tasks.semantics.nsa_page import render
from tasks.semantics.words import own_words


def nsa(cell: Cell) -> None:
    """Writes nsa.json, nsa.safetensors and nsa.html from the cell's recipe, adaptation set and test rows.

    Raises:
        InputError: one of these does not exist, the cell has no entry in `nsa` of params.yaml, no influential word
            occurs often enough, or the model is a mixture of experts.
    """
    for path in (cell.test, cell.samples, cell.pruned):
        if not path.exists():
            raise InputError(cell.name, f"{path.name} does not exist; run the cell's earlier steps first")
    run = _run(cell)
    of = made_of(cell.samples, cell.pruned, cell.test)
    recipe = read_recipe(cell.pruned)
    loaded = load(cell.model_dir, wide=True)
    stack = DecoderStack(loaded.model)
    if stack.each is not None:
        raise InputError(
            "model",
            f"{cell.model} is a mixture of experts, for which NSA is not supported: it compares with weight pruning",
        )
    rows = encode_rows(read_split(cell.test, run.rows), loaded.tokenizer, stack.context)
    own = own_words(rows, loaded.tokenizer)
    journal = Journal(cell.scratch / "nsa.jsonl", journal_key(_inputs(cell, run)))
    examples = find_influences(run, loaded, stack, rows, own, journal)
    kept, others = split_words(own, examples)
    if not kept:
        raise InputError(cell.name, f"no influential word occurs {MINIMUM} times in the {len(own)} rows")
    positions = word_positions([*kept, *others], [row.prompt for row in rows.encoded], own)
    base = word_activations(stack, positions)
    contexts = pruned_models(cell, run, recipe, loaded, stack)
    after = {name: word_activations(stack, positions, context).mean for name, context in contexts.items()}
    results = findings(cell, run, recipe, rows, own, examples, kept, base, after)
    results["stability"] = stability(stack, positions.first(len(kept)))
    _write(cell, results, of, kept, {"a": base.mean} | {f"a_{name}": values for name, values in after.items()})
    journal.remove()


def _run(cell: Cell) -> NsaRun:
    if cell.name not in cell.settings.nsa:
        raise InputError("nsa", f"{cell.name!r} is not in params.yaml: `dsm explain --nsa` adds it")
    return cell.settings.nsa[cell.name]


def _inputs(cell: Cell, run: NsaRun) -> list[Any]:
    """The inputs that determine the influential words."""
    return [run.rows, run.words, run.by, recorded_hash(cell.model_dir), sha256_file(cell.test)]


def _write(
    cell: Cell, results: dict[str, Any], of: dict[str, str], kept: list[str], activations: dict[str, np.ndarray]
) -> None:
    header = {
        "words": kept,
        "model_sha256": recorded_hash(cell.model_dir),
        "samples_sha256": of[cell.samples.name],
        "pruned_sha256": of[cell.pruned.name],
        "rows": results["rows"],
    }
    tensors = {name: np.ascontiguousarray(values[:, : len(kept)]) for name, values in activations.items()}
    # One key, since the order of several keys is not fixed and the bytes must not change from run to run.
    saved = save(tensors, metadata={"header": json.dumps(header, sort_keys=True)})
    write_page(cell, "nsa.json", results, of, {"nsa.safetensors": saved, "nsa.html": render(results).encode()})


if __name__ == "__main__":
    run_step(nsa, description=__doc__)
