"""Activations at words against hooks on the plain model; losses of pruned models, exact if they are known."""

import numpy as np
import pytest
import torch

from tasks.method.silence import Neurons, silenced
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.semantics import drops, meaning
from tasks.semantics.activations import WordPositions, word_activations, word_positions
from tasks.semantics.permutation import agreement
from tasks.semantics.words import occurrence_counts, own_words
from tasks.sparsity.weight_pruning import prune_weights, sparse
from tests.comparison.fit_data import assert_untouched, state, table
from tests.method.oracles import values_of
from tests.tiny import MIXTURES, UNGATED, tiny_model, tiny_tokenizer, zero_rows


def measured(family="llama", dtype=torch.float32, count=10):
    from tasks.benchmarks.table import encode_rows

    loaded = Loaded(tiny_model(family, dtype), tiny_tokenizer())
    stack = DecoderStack(loaded.model)
    rows = encode_rows(table(count), loaded.tokenizer, stack.context)
    own = own_words(rows, loaded.tokenizer)
    words = sorted(word for word, n in occurrence_counts(own).items() if n >= 2)
    return loaded, stack, rows, own, word_positions(words, [row.prompt for row in rows.encoded], own)


def directly(model, rows, own, words):
    """a(n, w) prompt by prompt: |h| from the projections themselves, one occurrence after the other."""
    means = []
    for layer in range(model.config.num_hidden_layers):
        of_words = {word: [] for word in words}
        for row, text in zip(rows.encoded, own, strict=True):
            hidden = values_of(model, layer, row.prompt)
            for one in text.occurrences:
                if one.word in of_words:
                    of_words[one.word].append(hidden[max(one.tokens)].abs())
        means.append(torch.stack([torch.stack(of_words[word]).mean(0) for word in words]))
    return torch.stack(means).numpy()


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", *UNGATED, *MIXTURES])
def test_they_are_those_of_hooks_on_the_plain_model(family):
    loaded, stack, rows, own, there = measured(family, torch.float64)
    found = word_activations(stack, there)
    assert found.mean.dtype == np.float32
    assert found.counts.tolist() == [occurrence_counts(own)[word] for word in there.words]
    np.testing.assert_allclose(found.mean, directly(loaded.model, rows, own, there.words), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", *UNGATED])
def test_a_pruned_row_drops_to_nothing_and_the_layers_below_stay(family):
    loaded, stack, rows, own, there = measured(family)
    before, weights = word_activations(stack, there), state(loaded.model)
    neurons = [0, 7, 8, 40]
    after = word_activations(stack, there, silenced(stack, Neurons(1, neurons)))
    assert_untouched(loaded.model, weights)
    drop = drops.drops(before.mean, after.mean)
    assert (drop[1][:, neurons] == (before.mean[1][:, neurons] > 0)).all()  # ReLU may be 0 before pruning
    assert (np.delete(drop[1], neurons, axis=1) == 0).all()
    assert (drop[0] == 0).all()
    assert (np.abs(drop[2]) > 1e-4).any()
    gone = drops.collapsed(drop)
    assert gone[1].sum() >= (before.mean[1][:, neurons] > 0).sum() > 0
    zero_rows(loaded.model, 1, neurons)
    np.testing.assert_allclose(after.mean, directly(loaded.model, rows, own, there.words), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["wanda", "magnitude"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_model_with_pruned_weights_is_measured_and_restored(family, method):
    loaded, stack, rows, own, there = measured(family)
    before, weights = word_activations(stack, there), state(loaded.model)
    sequences = [row.prompt for row in rows.encoded[:3]]
    after = word_activations(stack, there, sparse(loaded, sequences, method, 0.5))
    assert_untouched(loaded.model, weights)
    np.testing.assert_array_equal(word_activations(stack, there).mean, before.mean)
    assert (after.mean != before.mean).any(axis=(1, 2)).all()
    prune_weights(loaded, sequences, method, 0.5)
    np.testing.assert_allclose(after.mean, directly(loaded.model, rows, own, there.words), rtol=1e-4, atol=1e-5)


def test_copies_of_the_examples_say_the_same_and_other_examples_need_not():
    _, stack, _, _, there = measured(count=12)
    half = there.subset(range(6))
    first = word_activations(stack, half)
    doubled = WordPositions(half.words, half.prompts * 2, half.marks * 2)
    copies = word_activations(stack, doubled.subset(range(6, 12)))
    rank, common = agreement(first, copies)
    assert rank == pytest.approx(1, abs=1e-12)
    assert common == (first.counts > 0).sum() >= 3
    np.testing.assert_allclose(word_activations(stack, doubled).mean, first.mean, rtol=1e-5)
    other, _ = agreement(first, word_activations(stack, there.subset(range(6, 12))))
    assert -1 <= other < 0.999
    few = word_activations(stack, WordPositions(half.words[:2], half.prompts, [[m for m in marks if m[0] < 2] for marks in half.marks]))  # fmt: skip  # noqa: E501
    assert np.isnan(agreement(few, few)[0])


def test_words_without_a_place_are_zero():
    _, stack, _, _, there = measured()
    found = word_activations(
        stack, WordPositions(["nowhere", *there.words], there.prompts, [[] for _ in there.prompts])
    )
    assert (found.mean == 0).all()
    assert found.counts.sum() == 0


def test_shares_add_up_and_rank_both_ways():
    _, stack, _, _, there = measured()
    a = word_activations(stack, there).mean
    a[0, :, 5] = 0
    s, z = meaning.shares(a), meaning.z_scores(a)
    sums = s.sum(1)
    assert sums[0, 5] == 0
    sums[0, 5] = 1
    np.testing.assert_allclose(sums, 1, rtol=1e-12)
    np.testing.assert_allclose(z.mean(1), 0, atol=1e-9)
    assert (z[0, :, 5] == 0).all()
    order = meaning.words_of(s, 1, 3, 3)
    assert order == meaning.words_of(z, 1, 3, 3) == np.argsort(-a[1, :, 3], kind="stable")[:3].tolist()
    best = meaning.neurons_of(s, 0, 4)
    assert [s[layer, 0, neuron] for layer, neuron in best] == sorted(s[:, 0].ravel())[::-1][:4]


def test_a_neuron_with_many_words_is_polysemantic():
    a = np.full((1, 10, 3), 1.0)
    a[0, :3, 0] = 20  # 60 / 67 of it: three words
    a[0, :2, 1] = 20  # two
    assert meaning.having(meaning.shares(a)).sum(1).tolist() == [[3, 2, 0]]
    assert meaning.polysemantic(meaning.shares(a)).tolist() == [1]
    assert meaning.polysemantic(meaning.shares(a), needed=2).tolist() == [2]


def test_drops_where_nothing_was_and_where_it_grew():
    before, after = np.array([[[0.0, 1, 1, 4]]]), np.array([[[3.0, 0.1, 9, 1]]])
    drop = drops.drops(before, after)
    np.testing.assert_allclose(drop, [[[0, 0.9, -8, 0.75]]])
    assert drops.collapsed(drop).tolist() == [[[False, True, False, False]]]
    np.testing.assert_allclose(drops.mean_drop(drop), [[(0 + 0.9 - 1 + 0.75) / 4]])
    has = np.array([[[True, True, False, True]]])
    np.testing.assert_allclose(drops.lost(drops.collapsed(drop), has), [1 / 3])
    assert np.isnan(drops.lost(drops.collapsed(drop), ~has[:, :] & has)).all()
