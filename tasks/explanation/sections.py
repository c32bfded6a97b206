"""The sections of a cell's explanation: input attributions, pruned neurons, calibration and option bias."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from tasks.benchmarks.scoring import answers_without
from tasks.benchmarks.table import Rows
from tasks.comparison.calibrated import encoded_prompts, log_priors
from tasks.explanation import bias, correlates
from tasks.explanation.confidence import calibration, confidences, difference
from tasks.explanation.input_attribution import STABILITY, TOLERANCE, before_and_after, shares, template_ends
from tasks.explanation.neuron_roles import activations, direct_logits, top_activating, top_tokens
from tasks.method.recipe import Recipe
from tasks.method.scores import read_scores
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.runtime.errors import InputError
from tasks.runtime.progress import progress

EXAMPLES = 4  # prompts whose tokens are attributed
ROWS = 100  # test rows on which activations are measured
NEURONS = 20  # in the table; the summaries cover all pruned neurons
CONTEXTS = 5  # top-activating positions of each neuron
VOCABULARY = 8  # tokens whose logits are raised most and lowered most
LEVEL = 0.05  # of the false discovery rate
NOTHING = np.array([], dtype=np.int64)


def chosen_examples(predictions: pd.DataFrame, count: int = EXAMPLES) -> list[tuple[int, str]]:
    """Indices of example rows, and why each was chosen: it `gained` or `lost` the right answer by pruning, or `wrong`.

    Half of them are from each direction, if available, ordered by the change of the right option's probability. If
    fewer answers changed, they are followed by rows that are wrong before and after, ordered by the base model's
    confidence.
    """
    before, after = (_probabilities(predictions[f"{name}_logprobs"]) for name in ("base", "pruned"))
    gold, base, pruned = (predictions[name].to_numpy() for name in ("gold", "base", "pruned"))
    moved = np.array([abs(q[g] - p[g]) for p, q, g in zip(before, after, gold, strict=True)])
    order = np.argsort(-moved, kind="stable")
    gained = [int(i) for i in order if base[i] != gold[i] and pruned[i] == gold[i]]
    lost = [int(i) for i in order if base[i] == gold[i] and pruned[i] != gold[i]]
    by_confidence = np.argsort([-p.max() for p in before], kind="stable")
    wrong = [int(i) for i in by_confidence if base[i] != gold[i] and pruned[i] != gold[i]]
    some = max(count // 2, count - len(lost)), max(count // 2, count - len(gained))
    flips = [(i, "gained") for i in gained[: some[0]]] + [(i, "lost") for i in lost[: some[1]]]
    return [*flips, *((i, "wrong") for i in wrong)][:count]


def _probabilities(logprobs: pd.Series) -> list[np.ndarray]:
    return [softmax(np.asarray(row, dtype=np.float64)) for row in logprobs]


def input_section(
    cell: Cell, recipe: Recipe, loaded: Loaded, stack: DecoderStack, rows: Rows, predictions: pd.DataFrame
) -> dict[str, Any]:
    """Attributions of the tokens of some rows' own text; a row whose options have no margin is left out and counted.

    The tokens of the template do not move. If a row has no text of its own, all of its tokens are attributed.
    """
    head, tail = template_ends([row.prompt for row in rows.encoded])
    chosen = chosen_examples(predictions)
    examples: list[dict[str, Any]] = []
    with progress("explain", len(chosen)) as advance:
        for number, why in chosen:
            row = rows.table.iloc[number]
            own = range(head, len(rows.encoded[number].prompt) - tail)
            try:
                attribution = before_and_after(
                    loaded,
                    stack,
                    row["prompt"],
                    list(row["options"]),
                    recipe.layer,
                    recipe.neurons,
                    projection=recipe.projection,
                    chat=cell.benchmark_spec.chat,
                    moved=own or None,
                )
            except InputError as error:
                if error.field != "options":
                    raise
                continue
            finally:
                advance(1)
            sides = {}
            for name, integral in (("before", attribution.before), ("after", attribution.after)):
                share = shares(integral.scores)
                sides[name] = {
                    "attributions": integral.scores.tolist(),
                    "shares": share.tolist(),
                    "margin": integral.difference,
                    "gap": integral.gap,
                    "error": integral.error,
                    "nodes": integral.nodes,
                    "settled": integral.converged(TOLERANCE, STABILITY),
                }
            examples.append(
                {
                    "id": row["id"],
                    "why": why,
                    "gold": int(row["gold"]),
                    "options": list(row["options"]),
                    "base": int(predictions["base"].iloc[number]),
                    "pruned": int(predictions["pruned"].iloc[number]),
                    "for": attribution.options[0],
                    "against": attribution.options[1],
                    "tokens": attribution.tokens,
                    "own": [own.start, own.stop],
                }
                | sides
            )
    return {"examples": examples, "without_margin": len(chosen) - len(examples)}


def neuron_section(
    cell: Cell, recipe: Recipe, loaded: Loaded, stack: DecoderStack, rows: Rows, predictions: pd.DataFrame
) -> dict[str, Any]:
    """The pruned neurons: their share of the attribution, correlations, contexts and vocabulary directions."""
    scores = read_scores(cell.scores).values[recipe.layer].astype(np.float64)
    total = float(np.abs(scores).sum()) or 1.0
    pruned = np.array(recipe.neurons)
    top = pruned[np.argsort(-np.abs(scores[pruned]), kind="stable")[:NEURONS]].tolist()
    encoded = rows.encoded[:ROWS]
    prompts = [row.prompt for row in encoded]
    measured = activations(stack, recipe.layer, prompts, top, recipe.projection)
    correlations = _correlations(measured.last, encoded, rows, predictions, loaded.tokenizer)
    logits = direct_logits(stack, recipe.layer, top, recipe.projection)
    ids = rows.table["id"].tolist()
    others = np.delete(np.arange(recipe.d_ff), pruned)
    return {
        "n": len(prompts),
        "level": LEVEL,
        "share": float(np.abs(scores[pruned]).sum() / total),
        "signed_share": float(scores[pruned].sum() / total),
        "features": {
            name: {"kind": one.kind, "pruned": _summary(one, pruned), "others": _summary(one, others)}
            for name, one in correlations.items()
        },
        "top": [
            {
                "neuron": int(neuron),
                "score": float(scores[neuron]),
                "share": float(scores[neuron] / total),
                "mean_last": float(measured.last[:, neuron].mean()),
                "sd_last": float(measured.last[:, neuron].std()),
                "contexts": [
                    context | {"prompt": ids[context["prompt"]]}
                    for context in top_activating(loaded.tokenizer, prompts, measured.chosen, column, CONTEXTS)
                ],
                "correlations": {name: _of(one, neuron) for name, one in correlations.items()},
            }
            | top_tokens(loaded.tokenizer, logits[column], VOCABULARY)
            for column, neuron in enumerate(top)
        ],
    }


def _correlations(
    last: np.ndarray, encoded: list[Any], rows: Rows, predictions: pd.DataFrame, tokenizer: Any
) -> dict[str, correlates.Correlation]:
    """Correlations of activations at the last position of the first rows with features of the rows' own text."""
    n = len(encoded)
    head, tail = template_ends([row.prompt for row in rows.encoded])
    own = [row.prompt[head : len(row.prompt) - tail] for row in encoded]
    counts = pd.DataFrame([correlates.surface(tokenizer.decode(ids)) for ids in own])
    margins = correlates.option_margins([np.asarray(row) for row in predictions["base_logprobs"].iloc[:n]])
    return {
        "gold": correlates.with_label(last, rows.table["gold"].to_numpy()[:n]),
        "base margin": correlates.with_feature(last, margins),
        "length": correlates.with_feature(last, np.array([len(ids) for ids in own], dtype=np.float64)),
        "punctuation": correlates.with_feature(last, counts["punctuation"].to_numpy(dtype=np.float64)),
        "negation": correlates.with_feature(last, counts["negation"].to_numpy(dtype=np.float64)),
    }


def _of(correlation: correlates.Correlation, neuron: int) -> dict[str, Any]:
    values = {"r": correlation.r, "p": correlation.p, "q": correlation.q}
    return {"n": correlation.n} | {name: None if of is None else float(of[neuron]) for name, of in values.items()}


def _summary(correlation: correlates.Correlation, neurons: np.ndarray) -> dict[str, Any]:
    if correlation.r is None or correlation.q is None:
        return {"neurons": len(neurons), "mean_size": None, "detected": None}
    return {
        "neurons": len(neurons),
        "mean_size": float(np.abs(correlation.r[neurons]).mean()),
        "detected": int((correlation.q[neurons] < LEVEL).sum()),
    }


def calibration_section(predictions: pd.DataFrame) -> dict[str, Any]:
    """Calibration of base and pruned model, and the difference of their calibration errors."""
    gold = predictions["gold"].to_numpy()
    measured = {
        name: (
            confidences([np.asarray(row) for row in predictions[f"{name}_logprobs"]]),
            predictions[name].to_numpy() == gold,
        )
        for name in ("base", "pruned")
    }
    sections: dict[str, Any] = {name: calibration(*both) for name, both in measured.items()}
    return sections | {"pruned_minus_base": difference(measured["pruned"], measured["base"])}


def bias_section(
    cell: Cell, recipe: Recipe, loaded: Loaded, stack: DecoderStack, rows: Rows, predictions: pd.DataFrame
) -> dict[str, Any]:
    """The comparison of `tasks.explanation.bias`, with the priors of both models if there is a content-free prompt."""
    priors, reason = None, None
    sets = [NOTHING, np.array(recipe.neurons)]
    answer = partial(answers_without, stack, layer=recipe.layer, sets=sets, projection=recipe.projection)
    try:
        prompts = encoded_prompts(cell.benchmark_spec, loaded.tokenizer, stack.context)
    except InputError as error:
        reason = str(error)
    else:
        with torch.no_grad():
            priors = log_priors(answer, prompts, rows.encoded)
    base, pruned = ([np.asarray(row) for row in predictions[f"{name}_logprobs"]] for name in ("base", "pruned"))
    comparison = bias.compare(base, pruned, priors, rows.table["gold"].to_numpy())
    shared = priors is not None and all(np.array_equal(prior, priors[0]) for prior in priors)
    return comparison | {
        "no_prior": reason,
        "priors": dict(zip(("base", "pruned"), np.exp(priors[0]).tolist(), strict=True)) if shared and priors else None,
    }
