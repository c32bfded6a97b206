"""The grid against the naive one: zero the rows in the weights, run the whole model on each row."""

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.benchmarks.encoding import encode
from tasks.benchmarks.scoring import answers_unedited, answers_without
from tasks.method.grid import EACH, Grid, assemble, parts_of
from tasks.method.neurons import count, top_neurons
from tasks.method.pairs import UNPRUNED, every_pair
from tasks.models.stack import DecoderStack
from tasks.runtime.journal import Journal
from tasks.runtime.work import run_parts, worker_pool
from tests.tiny import ALL, MIXTURES, tiny_model, tiny_tokenizer, zero_rows

FRACTIONS = [0.1, 0.25, 0.4]
TOKENIZER = tiny_tokenizer()
ROWS = [
    encode(TOKENIZER, prompt, options, 100)
    for prompt, options in [("a film :", ["y", "n"]), ("a fine film :", ["yes", "no !"]), ("x", ["p", "q", "r"])]
]
GOLD = [0, 1, 2]


def nothing(_):
    pass


def run(model, tmp_path, name="journal", scores=None):
    stack = DecoderStack(model)
    if scores is None:
        scores = np.random.default_rng(0).normal(size=(len(stack), stack.d_ff)).astype(np.float32)
    journal = Journal(tmp_path / name, "key")
    with worker_pool(lambda: Grid(stack, ROWS, GOLD, scores)) as workers:
        packs = workers.attribute("sizes")
        parts = parts_of(every_pair(*scores.shape[:1], FRACTIONS), len(packs))
        return assemble(run_parts(workers, parts, journal, nothing), sum(packs), scores.shape[1]), scores


def naive(model, row):
    """Log-probability of each option by a forward pass of its own."""
    values = []
    for option in row.options:
        ids = [*row.prompt, *option]
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        values.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(len(row.prompt), len(ids))))
    return np.array(values)


@pytest.mark.parametrize("family", [*ALL, *MIXTURES])
def test_every_cell_equals_a_naive_forward_with_zeroed_weights(family, tmp_path):
    model = tiny_model(family, torch.float32)
    frame, scores = run(model, tmp_path)
    assert len(frame) == 1 + len(scores) * len(FRACTIONS)
    for row in frame.itertuples():
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        if row.layer != UNPRUNED:
            zero_rows(model, row.layer, top_neurons(scores[row.layer], row.neurons))
        logprobs = [naive(model, encoded) for encoded in ROWS]
        margins = [values[g] - np.delete(values, g).max() for values, g in zip(logprobs, GOLD, strict=True)]
        assert row.accuracy == np.mean([values.argmax() == g for values, g in zip(logprobs, GOLD, strict=True)])
        assert row.margin == pytest.approx(np.mean(margins), abs=2e-3)
        assert row.neurons == count(row.fraction, scores.shape[1])
        model.load_state_dict(kept)


def test_each_option_equals_a_naive_forward():
    model = tiny_model("llama", torch.float32)
    stack = DecoderStack(model)
    silenced = np.arange(0, 48, 3)
    answers = answers_without(stack, ROWS, 1, [silenced])
    model.model.layers[1].mlp.gate_proj.weight[torch.tensor(silenced)] = 0
    for row, found in zip(ROWS, answers.logprobs, strict=True):
        np.testing.assert_allclose(found[0], naive(model, row), atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_silencing_nothing_is_bit_identical_to_the_base(layer):
    stack = DecoderStack(tiny_model("llama", torch.float32))
    base = answers_unedited(stack, ROWS)
    edited = answers_without(stack, ROWS, layer, [np.array([], dtype=int)])
    for first, second in zip(base.logprobs, edited.logprobs, strict=True):
        assert first.tobytes() == second.tobytes()


def test_a_killed_grid_goes_on_where_it_stopped(tmp_path, monkeypatch):
    model = tiny_model("llama", torch.float32)
    whole, scores = run(model, tmp_path, "whole")
    calls = []
    silenced = DecoderStack.leaving_without

    def dies_at_the_second(self, index, *rest):
        calls.append(index)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return silenced(self, index, *rest)

    monkeypatch.setattr(DecoderStack, "leaving_without", dies_at_the_second)
    monkeypatch.setitem(EACH, "float32", 1)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, "killed", scores)
    resumed, _ = run(model, tmp_path, "killed", scores)
    assert calls == [0, 1, 1, 2]
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
