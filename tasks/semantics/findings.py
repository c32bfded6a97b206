"""The results of neuron semantic attribution for a cell (2503.01542): the content of nsa.json."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from tasks.benchmarks.benchmark_spec import DATE
from tasks.benchmarks.table import Rows
from tasks.method.recipe import Recipe
from tasks.method.silence import silenced
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.runs import NsaRun
from tasks.runtime.files import read_jsonl
from tasks.runtime.journal import Journal
from tasks.runtime.progress import progress
from tasks.semantics import drops, meaning, summary
from tasks.semantics.activations import WordActivations, WordPositions, word_activations
from tasks.semantics.influence import Influence, influential_words
from tasks.semantics.permutation import agreement, halves
from tasks.semantics.words import RowWords, contexts, occurrence_counts
from tasks.sparsity.calibration import encode_prompts
from tasks.sparsity.weight_pruning import sparse

MINIMUM = 3  # occurrences of a word in the rows
CONTEXTS = 3  # contexts of each word
SPLITS = (0, 1, 2, 3, 4)  # seeds of the random halves


def find_influences(
    run: NsaRun, loaded: Loaded, stack: DecoderStack, rows: Rows, own: list[RowWords], journal: Journal
) -> list[Influence | None]:
    """Step 1, row by row. It takes most of the time; a killed step resumes after the last finished row."""
    date = rows.chat[0] or DATE
    with progress("nsa", len(own)) as advance:
        for number, (row, words) in enumerate(zip(rows.encoded, own, strict=True)):
            if str(number) not in journal.parts:
                [influence] = influential_words(loaded, stack, [row], [words], run.words, run.by, date=date)
                journal.put(str(number), None if influence is None else asdict(influence))
            advance(1)
    parts = [journal.parts[str(number)] for number in range(len(own))]
    return [None if part is None else Influence(**part) for part in parts]


def split_words(own: list[RowWords], examples: list[Influence | None]) -> tuple[list[str], list[str]]:
    """The words with at least MINIMUM occurrences, in two lists: those that are influential in an example, and others.

    The influential words are sorted by their number of examples, descending.
    """
    frequent = [word for word, count in occurrence_counts(own).items() if count >= MINIMUM]
    examples_of = _examples_of(examples)
    kept = sorted((word for word in frequent if word in examples_of), key=lambda word: (-examples_of[word], word))
    return kept, sorted(word for word in frequent if word not in examples_of)


def _examples_of(examples: list[Influence | None]) -> Counter[str]:
    return Counter(word for example in examples if example for word in example.words)


def pruned_models(
    cell: Cell, run: NsaRun, recipe: Recipe, loaded: Loaded, stack: DecoderStack
) -> dict[str, AbstractContextManager[Any]]:
    """Contexts in which the model is pruned: by the recipe, and by weight pruning calibrated on the adaptation set."""
    prompts = encode_prompts(pd.DataFrame(read_jsonl(cell.samples)), loaded.tokenizer, stack.context)
    return {
        "pruned": silenced(stack, recipe),
        run.method: sparse(loaded, prompts, run.method, run.sparsity),
    }


def findings(
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
    """nsa.json without `stability`: the influential words `kept`, their neurons, and the effect of each pruning."""
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


def stability(stack: DecoderStack, positions: WordPositions) -> dict[str, Any]:
    """The rank correlation of the unpruned model's scores between random halves of the rows."""
    splits = []
    for seed in SPLITS:
        first, second = (
            word_activations(stack, positions.subset(half)) for half in halves(len(positions.prompts), seed)
        )
        rank, common = agreement(first, second)
        splits.append({"seed": seed, "spearman": None if np.isnan(rank) else rank, "words": common})
    ranks = [split["spearman"] for split in splits if split["spearman"] is not None]
    return {"mean": float(np.mean(ranks)) if ranks else None, "splits": splits}
