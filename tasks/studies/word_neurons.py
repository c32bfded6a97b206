"""Study `word_neurons`: do the same neurons respond to the same words on other benchmarks (2503.01542)?

The neurons of a word are the NEURONS_OF_A_WORD with the highest share s(n, w) over all layers of the unpruned model, as
on the pages of Neuron Semantic Attribution. Compared are all words that occur often enough in the test rows of both
benchmarks, with activations from the rows of each. Two random halves of the rows of one benchmark show what agreement
so many rows allow.
"""

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.semantics.activations import WordActivations, word_activations, word_positions
from tasks.semantics.findings import MINIMUM
from tasks.semantics.meaning import neurons_of, shares
from tasks.semantics.permutation import agreement, frequency_strata, halves, matching_test
from tasks.semantics.summary import NEURONS_OF_A_WORD, brief
from tasks.semantics.words import RowWords, occurrence_counts, own_words
from tasks.studies.context import Record, StudyContext

FEWEST = 3  # common words
Side = tuple[list[list[int]], list[RowWords]]  # the prompts of rows, and the words of each


def parts(context: StudyContext) -> list[str]:
    """`A|B` for each pair of benchmarks, and before them `A|A` for the halves of each."""
    names = [context.cell.benchmark, *context.run.benchmarks]
    return [f"{name}|{name}" for name in names] + [f"{one}|{other}" for one, other in combinations(names, 2)]


def compute(context: StudyContext, part: str) -> list[Record]:
    """The mean overlap of the two sets of neurons of a word, as a fraction of a set."""
    one, other = part.split("|")
    if one == other:
        prompts, own = _side(context, one)
        sides = [([prompts[i] for i in half], [own[i] for i in half]) for half in halves(len(own), seed=0)]
        label, group = f"{one}, halves of its rows", "one benchmark"
    else:
        sides = [_side(context, one), _side(context, other)]
        label, group = f"{one} and {other}", "two benchmarks"
    words = common_words(*(own for _, own in sides))
    more: dict[str, Any] = {"rows": ", ".join(str(len(own)) for _, own in sides), "words": len(words)}
    if len(words) < FEWEST:
        more["note"] = f"fewer than {FEWEST} words occur {MINIMUM} times on both sides"
        return [Record(label, None, group=group, more=more)]
    first, second = (word_activations(context.stack, word_positions(words, prompts, own)) for prompts, own in sides)
    overlap = overlaps(first, second)
    test = matching_test(overlap, frequency_strata(first.counts + second.counts))
    itself = overlap.diagonal()
    more |= {
        "other words": brief(test["random"]),
        "p (permutation)": brief(test["p"]),
        "Spearman": brief(agreement(first, second)[0]),
    }
    return [Record(label, test["mean"], float(itself.std(ddof=1) / len(words) ** 0.5), group=group, more=more)]


def common_words(one: list[RowWords], other: list[RowWords]) -> list[str]:
    """The words that occur MINIMUM times in both, in alphabetical order."""
    counts = occurrence_counts(other)
    return sorted(word for word, n in occurrence_counts(one).items() if min(n, counts[word]) >= MINIMUM)


def overlaps(first: WordActivations, second: WordActivations) -> npt.NDArray[np.float64]:
    """The fraction of the neurons of word i in `first` that are neurons of word j in `second`, [words, words]."""
    sets = []
    for activations in (first, second):
        s = shares(activations.mean)
        of_words = [neurons_of(s, word, NEURONS_OF_A_WORD) for word in range(s.shape[1])]
        sets.append([[layer * s.shape[2] + neuron for layer, neuron in neurons] for neurons in of_words])
    _, column = np.unique(np.array(sets), return_inverse=True)
    member = np.zeros((2, len(sets[0]), int(column.max()) + 1))
    np.put_along_axis(member, column.reshape(np.shape(sets)), 1, axis=2)
    return np.asarray(member[0] @ member[1].T / NEURONS_OF_A_WORD)


def _side(context: StudyContext, benchmark: str) -> Side:
    rows = context.test_of(benchmark)
    return [row.prompt for row in rows.encoded], own_words(rows, context.loaded.tokenizer)
