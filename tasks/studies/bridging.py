"""Study `bridge`, ours: weight pruning that spares neurons, and DSM pruning after weight pruning.

The spared neurons are those that neuron semantic attribution (tasks.semantics) links to the task. It uses the examples
of the adaptation set without their labels.
"""

import numpy as np

from tasks.benchmarks.scoring import answers_unedited
from tasks.method.algorithm import adapt
from tasks.method.neurons import count, random_neurons, top_neurons
from tasks.method.recipe import Recipe
from tasks.method.silence import silenced
from tasks.runtime.errors import InputError
from tasks.semantics.activations import word_activations, word_positions
from tasks.semantics.influence import influential_words
from tasks.semantics.words import occurrence_counts, own_words
from tasks.sparsity.weight_pruning import Method, NeuronsByLayer, sparse
from tasks.studies.calibrating import OWN, calibration_set
from tasks.studies.context import Record, StudyContext, accuracy_record, pair_columns

METHOD: Method = "wanda"
SPARSITY = 0.5
SPARED = 0.1  # fraction of the neurons of every layer
WEIGHTS = f"{METHOD.capitalize()} {SPARSITY:.0%}"


def parts(context: StudyContext) -> list[str]:
    return ["unpruned", "DSM", "weights", "spared", "spared at random", "DSM on top", "DSM anew on top"]


def compute(context: StudyContext, part: str) -> list[Record]:
    """The accuracy of one pruned model."""
    if part == "unpruned":
        return [context.base_record()]
    chosen = context.recipe
    if part == "DSM":
        return [context.pruned_record("DSM pruning", chosen)]
    if part == "spared":
        return [_weights(context, f"{WEIGHTS}, sparing NSA's neurons", linked(context))]
    if part == "spared at random":
        width, layers = context.stack.d_ff, range(len(context.stack))
        at_random = {layer: random_neurons(width, count(SPARED, width), layer).tolist() for layer in layers}
        return [_weights(context, f"{WEIGHTS}, sparing random neurons", at_random)]
    if part == "DSM on top":
        return [_weights(context, f"{WEIGHTS}, then DSM pruning's neurons", {}, chosen)]
    if part == "DSM anew on top":
        return [_weights(context, f"{WEIGHTS}, then DSM pruning anew", {}, anew=True)]
    return [_weights(context, WEIGHTS, {})]


def linked(context: StudyContext) -> NeuronsByLayer:
    """For each layer, the neurons that respond most to the influential words.

    The score of a neuron is the mean of a(n, w) over the words of the examples, weighted by influence (the sum of the
    absolute attributions in all examples), divided by the unweighted mean.

    Raises:
        InputError: no word of the adaptation set is influential.
    """
    rows, stack = context.samples, context.stack
    own = own_words(rows, context.loaded.tokenizer)
    words = list(occurrence_counts(own))
    influence = dict.fromkeys(words, 0.0)
    for example in influential_words(context.loaded, stack, rows.encoded, own, len(words)):
        if example and example.shares:
            for word, share in zip(example.words, example.shares, strict=True):
                influence[word] += abs(share)
    weight = np.array(list(influence.values()))
    if not weight.any():
        raise InputError("bridge", "no word of the examples influences the answers")
    a = word_activations(stack, word_positions(words, [row.prompt for row in rows.encoded], own)).mean.astype(
        np.float64
    )
    mean, weighted = a.mean(1), np.einsum("w,lwn->ln", weight / weight.sum(), a)
    link = np.divide(weighted, mean, out=np.zeros_like(mean), where=mean > 0)
    return {layer: top_neurons(values, count(SPARED, stack.d_ff)).tolist() for layer, values in enumerate(link)}


def _weights(
    context: StudyContext, label: str, spared: NeuronsByLayer, recipe: Recipe | None = None, *, anew: bool = False
) -> Record:
    """Weight pruning on the cell's train prompts, then pruning of the recipe's neurons, if any."""
    calibration = calibration_set(context, OWN)
    base = context.correct(context.base)
    with sparse(context.loaded, calibration.sequences, METHOD, SPARSITY, spared) as report:
        if anew:
            recipe = adapt(
                context.stack,
                context.loaded.tokenizer,
                context.samples.table,
                attribution=context.settings.attribution,
                search=context.settings.search,
                precision=context.settings.precision.search,
            ).recipe
        with silenced(context.stack, *([recipe] if recipe else [])):
            right = context.correct(answers_unedited(context.stack, context.test.encoded))
    more = {"weights removed": f"{report.sparsity:.1%}", **(pair_columns(recipe) if recipe else {})}
    return accuracy_record(label, right, base, group=METHOD, **more)
