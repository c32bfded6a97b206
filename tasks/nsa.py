"""nsa: which words the neurons answer to, and which of them pruning silences: nsa.json, its activations and a page."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save

from tasks.benchmarks.table import Rows, encode_rows, read_split
from tasks.method.recipe import Recipe, read_recipe
from tasks.method.silence import silenced
from tasks.models.hashing import recorded_hash
from tasks.models.loading import Loaded, load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.declared import DATE
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import read_jsonl, sha256_file
from tasks.pipeline.journal import Journal, journal_key
from tasks.pipeline.pages import made_of, write_page
from tasks.pipeline.progress import progress
from tasks.pipeline.settings import NsaRun
from tasks.pipeline.step import run_step
from tasks.semantics import drops, meaning, summary
from tasks.semantics.activations import Places, WordActivations, places, word_activations
from tasks.semantics.influence import Influence, influential
from tasks.semantics.page import render
from tasks.semantics.statistics import agreement, halves
from tasks.semantics.words import RowWords, contexts, occurrence_counts, own_words
from tasks.sparsity.calibration import encode_prompts
from tasks.sparsity.prune import sparse

MINIMUM = 3  # occurrences in the rows
CONTEXTS = 3  # of each word
SPLITS = (0, 1, 2, 3, 4)  # seeds


def nsa(cell: Cell) -> None:
    """Writes nsa.json, nsa.safetensors and nsa.html from the cell's recipe, adaptation set and test rows.

    Raises:
        InputError: one of these is not there, the cell does not stand under `nsa` in params.yaml, or no influential
            word occurs often enough.
    """
    for path in (cell.test, cell.samples, cell.pruned):
        if not path.exists():
            raise InputError(cell.name, f"{path.name} is not there; the cell's earlier steps have not run")
    run = _run(cell)
    of = made_of(cell.samples, cell.pruned, cell.test)
    recipe = read_recipe(cell.pruned)
    loaded = load(cell.model_dir, wide=True)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(read_split(cell.test, run.rows), loaded.tokenizer, stack.context)
    own = own_words(rows, loaded.tokenizer)
    journal = Journal(cell.scratch / "nsa.jsonl", journal_key(_inputs(cell, run)))
    examples = _influences(run, loaded, stack, rows, own, journal)
    kept, others = split_words(own, examples)
    if not kept:
        raise InputError(cell.name, f"no influential word occurs {MINIMUM} times in the {len(own)} rows")
    there = places([*kept, *others], [row.prompt for row in rows.encoded], own)
    base = word_activations(stack, there)
    ways = _ways(cell, run, recipe, loaded, stack)
    after = {name: word_activations(stack, there, way).mean for name, way in ways.items()}
    found = _found(cell, run, recipe, rows, own, examples, kept, base, after)
    found["stability"] = _stability(stack, Places(kept, there.prompts, _of_first(there, len(kept))))
    _write(cell, found, of, kept, {"a": base.mean} | {f"a_{name}": values for name, values in after.items()})
    journal.remove()


def _run(cell: Cell) -> NsaRun:
    if cell.name not in cell.settings.nsa:
        raise InputError("nsa", f"{cell.name!r} is not in params.yaml: `dsm explain --nsa` adds it")
    return cell.settings.nsa[cell.name]


def _inputs(cell: Cell, run: NsaRun) -> list[Any]:
    """What the influential words depend on."""
    return [run.rows, run.words, run.by, recorded_hash(cell.model_dir), sha256_file(cell.test)]


def _influences(
    run: NsaRun, loaded: Loaded, stack: DecoderStack, rows: Rows, own: list[RowWords], journal: Journal
) -> list[Influence | None]:
    """Step 1, row by row: it takes most of the time, and a killed step goes on behind the last row that it finished."""
    date = rows.table["chat"].iloc[0] if "chat" in rows.table else DATE
    with progress("nsa", len(own)) as advance:
        for number, (row, words) in enumerate(zip(rows.encoded, own, strict=True)):
            if str(number) not in journal.parts:
                [found] = influential(loaded, stack, [row], [words], run.words, run.by, date=date)
                journal.put(str(number), None if found is None else asdict(found))
            advance(1)
    parts = [journal.parts[str(number)] for number in range(len(own))]
    return [None if part is None else Influence(**part) for part in parts]


def split_words(own: list[RowWords], examples: list[Influence | None]) -> tuple[list[str], list[str]]:
    """The words that occur MINIMUM times: those influential in an example, by how many, and all others."""
    frequent = [word for word, count in occurrence_counts(own).items() if count >= MINIMUM]
    examples_of = _examples_of(examples)
    kept = sorted((word for word in frequent if word in examples_of), key=lambda word: (-examples_of[word], word))
    return kept, sorted(word for word in frequent if word not in examples_of)


def _examples_of(examples: list[Influence | None]) -> dict[str, int]:
    found: dict[str, int] = {}
    for example in examples:
        for word in example.words if example else []:
            found[word] = found.get(word, 0) + 1
    return found


def _ways(
    cell: Cell, run: NsaRun, recipe: Recipe, loaded: Loaded, stack: DecoderStack
) -> dict[str, AbstractContextManager[Any]]:
    """Contexts in which the model is pruned: by the recipe, and by weights, calibrated on the adaptation set."""
    prompts = encode_prompts(pd.DataFrame(read_jsonl(cell.samples)), loaded.tokenizer, stack.context)
    return {
        "pruned": silenced(stack, recipe),
        run.method: sparse(loaded, prompts, run.method, run.sparsity),
    }


def _found(
    cell: Cell,
    run: NsaRun,
    recipe: Recipe,
    rows: Rows,
    own: list[RowWords],
    examples: list[Influence | None],
    kept: list[str],
    base: WordActivations,
    after: dict[str, np.ndarray],
) -> dict[str, Any]:
    n = len(kept)
    of_kept = {name: values[:, :n] for name, values in after.items()}
    ids, examples_of = rows.table["id"].tolist(), _examples_of(examples)
    silent = [] if recipe.projection == "down_proj" else [(recipe.layer, neuron) for neuron in recipe.neurons]
    words = summary.words(base.mean[:, :n], of_kept)
    for number, (word, entry) in enumerate(zip(kept, words, strict=True)):
        entry |= {
            "word": word,
            "occurrences": int(base.counts[number]),
            "examples": examples_of[word],
            "contexts": [[ids[row], *text] for row, *text in contexts(own, word, CONTEXTS)],
        }
    return {
        "model": cell.model,
        "benchmark": cell.benchmark,
        "layer": recipe.layer,
        "projection": recipe.projection,
        "pruned": len(recipe.neurons),
        "width": recipe.d_ff,
        "layers": len(base.mean),
        "rows": len(own),
        "names": {"pruned": "pruned neurons", run.method: f"{run.method.capitalize()} {100 * run.sparsity:g} %"},
        "settings": {
            "by": run.by,
            "words": run.words,
            "minimum": MINIMUM,
            "collapse": drops.COLLAPSE,
            "factor": meaning.FACTOR,
            "words_needed": meaning.WORDS_NEEDED,
            "neurons_of_a_word": summary.NEURONS_OF_A_WORD,
            "neurons_of_a_layer": summary.NEURONS_OF_A_LAYER,
        },
        "without_margin": examples.count(None),
        "rough": sum(example.rough for example in examples if example),
        "examples": [_example(name, example) for name, example in zip(ids, examples, strict=True) if example],
        "words": words,
        "neurons": summary.neurons(base.mean[:, :n], of_kept, silent),
        "polysemantic": meaning.polysemantic(meaning.shares(base.mean[:, :n])).tolist(),
        "systems": summary.systems(base.mean, after, base.counts, n),
    }


def _example(name: str, example: Influence) -> dict[str, Any]:
    shares: Sequence[float | None] = example.shares or [None] * len(example.words)
    return {
        "id": name,
        "words": [{"word": word, "share": share} for word, share in zip(example.words, shares, strict=True)],
    }


def _of_first(there: Places, count: int) -> list[list[tuple[int, int]]]:
    return [[mark for mark in marks if mark[0] < count] for marks in there.marks]


def _stability(stack: DecoderStack, there: Places) -> dict[str, Any]:
    """Of the unpruned model's scores on random halves of the rows."""
    splits = []
    for seed in SPLITS:
        first, second = (word_activations(stack, there.among(half)) for half in halves(len(there.prompts), seed))
        rank, common = agreement(first, second)
        splits.append({"seed": seed, "spearman": None if np.isnan(rank) else rank, "words": common})
    ranks = [split["spearman"] for split in splits if split["spearman"] is not None]
    return {"mean": float(np.mean(ranks)) if ranks else None, "splits": splits}


def _write(
    cell: Cell, found: dict[str, Any], of: dict[str, str], kept: list[str], activations: dict[str, np.ndarray]
) -> None:
    header = {
        "words": kept,
        "model_sha256": recorded_hash(cell.model_dir),
        "samples_sha256": of[cell.samples.name],
        "pruned_sha256": of[cell.pruned.name],
        "rows": found["rows"],
    }
    tensors = {name: np.ascontiguousarray(values[:, : len(kept)]) for name, values in activations.items()}
    # One key: the format does not fix the order of several, and the bytes must not change from run to run.
    saved = save(tensors, metadata={"header": json.dumps(header, sort_keys=True)})
    write_page(cell, "nsa.json", found, of, {"nsa.safetensors": saved, "nsa.html": render(found).encode()})


if __name__ == "__main__":
    run_step(nsa, description=__doc__)
