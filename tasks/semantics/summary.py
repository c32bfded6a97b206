"""Summaries of the activations by word, neuron and layer, before and after each kind of pruning.

Long lists are rounded to four significant digits; nsa.safetensors has the exact numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.semantics import drops, meaning
from tasks.semantics.permutation import frequency_strata, permutation_test

NEURONS_OF_A_WORD = 10
NEURONS_OF_A_LAYER = 10
WORDS_OF_A_NEURON = 5


@dataclass(frozen=True)
class Comparison:
    """One kind of pruning compared with the unpruned model, at the same words.

    Attributes:
        before, after: a(n, w), [layers, W, width].
    """

    before: np.ndarray
    after: np.ndarray

    @cached_property
    def drop(self) -> npt.NDArray[np.float64]:
        return drops.drops(self.before, self.after)

    @cached_property
    def collapsed(self) -> npt.NDArray[np.bool_]:
        return drops.collapsed(self.drop)


def systems(
    base: np.ndarray, pruned: Mapping[str, np.ndarray], counts: npt.NDArray[np.int64], kept: int
) -> dict[str, dict[str, Any]]:
    """For each kind of pruning: the permutation test of the drop at influential words, and summaries by layer.

    Args:
        base: a(n, w), [layers, W, width], the influential words first.
        pruned: the same for each kind of pruning.
        counts: occurrences, [W].
        kept: the number of influential words.
    """
    chosen = np.arange(len(counts)) < kept
    result = {}
    for name, after in pruned.items():
        # Layer by layer to save memory: there may be many more random words than influential ones.
        by_layer = [drops.mean_drop(drops.drops(b[None], a[None]))[0] for b, a in zip(base, after, strict=True)]
        one = Comparison(base[:, :kept], after[:, :kept])
        s = meaning.shares(one.after)
        result[name] = {
            "permutation": permutation_test(np.mean(by_layer, axis=0), chosen, frequency_strata(counts)),
            "drop": rounded(drops.mean_drop(one.drop).mean(1)),
            "collapsed": rounded(one.collapsed.mean((1, 2))),
            "collapsed_everywhere": one.collapsed.all(1).sum(1).tolist(),
            "polysemantic": meaning.polysemantic(s).tolist(),
        }
    return result


def words(base: np.ndarray, pruned: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """For each word: the number of neurons that have it; by layer, mean |h| before and after, and the collapsed share.

    Args:
        base: a(n, w) of the influential words, [layers, W, width].
        pruned: the same for each kind of pruning.
    """
    has = meaning.having(meaning.shares(base))
    result: list[dict[str, Any]] = [
        {"neurons": int(has[:, w].sum()), "before": rounded(base[:, w].mean(1)), "systems": {}}
        for w in range(base.shape[1])
    ]
    for name, after in pruned.items():
        one = Comparison(base, after)
        lost, dropped = drops.lost(one.collapsed, has), drops.mean_drop(one.drop)
        for w, word in enumerate(result):
            word["systems"][name] = {
                "after": rounded(after[:, w].mean(1)),
                "drop": rounded(dropped[:, w]),
                "collapsed": rounded(one.collapsed[:, w].mean(1)),
                "lost": None if np.isnan(lost[w]) else brief(lost[w]),
            }
    return result


def neurons(
    base: np.ndarray, pruned: Mapping[str, np.ndarray], silenced: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """The neurons with the highest s for each word and in each layer, and the words that they respond to.

    Args:
        base: a(n, w) of the influential words, [layers, W, width].
        pruned: the same for each kind of pruning.
        silenced: (layer, neuron) of the neurons that the recipe prunes.

    Returns:
        By layer and neuron: whether it is pruned, and for each of its words index, s, z, activation before and after.
    """
    s, z = meaning.shares(base), meaning.z_scores(base)
    wanted: dict[tuple[int, int], set[int]] = {}
    for w in range(base.shape[1]):
        for place in meaning.neurons_of(s, w, NEURONS_OF_A_WORD):
            wanted.setdefault(place, set()).add(w)
    for layer, values in enumerate(s.max(1)):
        for neuron in np.argsort(-values, kind="stable")[:NEURONS_OF_A_LAYER]:
            wanted.setdefault((layer, int(neuron)), set())
    gone = set(silenced)

    def of_word(layer: int, neuron: int, w: int) -> dict[str, Any]:
        return {
            "word": w,
            "s": brief(s[layer, w, neuron]),
            "z": brief(z[layer, w, neuron]),
            "before": brief(base[layer, w, neuron]),
            "after": {name: brief(after[layer, w, neuron]) for name, after in pruned.items()},
        }

    result = []
    for (layer, neuron), also in sorted(wanted.items()):
        top = meaning.words_of(s, layer, neuron, WORDS_OF_A_NEURON)
        order = [*top, *sorted(also - set(top), key=lambda w: -s[layer, w, neuron])]
        entries = [of_word(layer, neuron, w) for w in order]
        result.append({"layer": layer, "neuron": neuron, "pruned": (layer, neuron) in gone, "words": entries})
    return result


def brief(value: float) -> float:
    """Four significant digits."""
    return float(f"{float(value):.4g}")


def rounded(values: Iterable[float]) -> list[float]:
    return [brief(value) for value in values]
