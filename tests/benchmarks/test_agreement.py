"""Option scores agree with lm-evaluation-harness, whatever the tokenizer adds, and whatever rows share a pack."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import processors

from bench.agreement import BENCHMARKS, compare, rows_of
from tasks.benchmarks import library
from tasks.benchmarks.encoding import encode
from tasks.benchmarks.rows import Example
from tasks.benchmarks.scoring import answers_unedited, option_logprobs
from tasks.models.loading import Loaded, load
from tasks.models.stack import DecoderStack
from tests.tiny import ALL, MIXTURES, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DSM_TEST_DATA") or ROOT.parent / "shared" / "data")
MODEL = Path(os.environ.get("DSM_TEST_MODEL") or ROOT / "data" / "models" / "smollm2-135m-instruct")

ROWS = [
    Example(1, "a film :", 1, (" bad", " good", " so so")),
    Example(2, "a warm and rather long film, with people in it :", 0, (" bad", " good", " so so")),
    Example(3, "two spaces  ", 0, (" y", " no")),
    Example(4, "", 1, (" y", " no")),
]


def tokenizer(*, bos=False, padding="right", pad=None):
    found = tiny_tokenizer()
    found.padding_side = padding
    if pad:
        found.pad_token = found.eos_token if pad == "eos" else pad
    if bos:
        found.bos_token = "<|end|>"
        found.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", 256)]
        )
    return found


@pytest.mark.parametrize("bos", [False, True])
def test_padding_changes_nothing_and_the_harness_agrees(bos):
    model = tiny_model("llama", torch.float32)
    prompts, options = [row.prompt for row in ROWS], [row.options for row in ROWS]
    expected = option_logprobs(Loaded(model, tokenizer(bos=bos)), prompts, options)
    for padding in ("left", "right"):
        for pad in (None, "eos", "!"):
            loaded = Loaded(model, tokenizer(bos=bos, padding=padding, pad=pad))
            for found, values in zip(option_logprobs(loaded, prompts, options), expected, strict=True):
                assert found.tobytes() == values.tobytes()
    found = compare(Loaded(model, tokenizer(bos=bos, pad="eos")), ROWS)
    assert found.holds, found


def test_a_begin_of_text_token_is_read_where_the_tokenizer_writes_it():
    model = tiny_model("llama", torch.float32)
    without, with_it = (
        option_logprobs(Loaded(model, tokenizer(bos=bos)), ["a film :"], [[" y", " n"]])[0] for bos in (False, True)
    )
    assert np.abs(without - with_it).max() > 1e-3
    ids = [256, *tiny_tokenizer()("a film :")["input_ids"]]
    option = tiny_tokenizer()(" y")["input_ids"]
    logprobs = model(torch.tensor([[*ids, *option]])).logits[0].log_softmax(-1)
    plain = sum(float(logprobs[len(ids) - 1 + i, token]) for i, token in enumerate(option))
    assert with_it[0] == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("family", [*ALL, *MIXTURES])
def test_no_prediction_depends_on_the_rows_it_shares_a_pack_with(family):
    stack = DecoderStack(tiny_model(family, torch.float32))
    rng = np.random.default_rng(0)
    words = ["good", "bad", "a", "film", "very", "long"]
    prompts = [" ".join(rng.choice(words, rng.integers(1, 8))) + " :" for _ in range(24)]
    rows = [encode(tiny_tokenizer(), prompt, [" good", " bad", " so so"], 200) for prompt in prompts]
    base = answers_unedited(stack, rows).logprobs
    for seed, size in ((1, 24), (2, 7), (3, 1)):
        order = np.random.default_rng(seed).permutation(len(rows))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            again = answers_unedited(stack, [rows[i] for i in part]).logprobs
            for i, values in zip(part, again, strict=True):
                np.testing.assert_allclose(values, base[i], atol=1e-3, rtol=1e-5)


@pytest.mark.real
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("sst2", "arc_easy") else pytest.mark.slow) for n in BENCHMARKS]
)
def test_real_rows_agree_with_the_harness(name):
    _, _, facts = library.origin(name, field="b", data=str(DATA))
    assert facts
    if not MODEL.exists():
        pytest.skip("needs the default model in data/models: `dsm run` makes it; or DSM_TEST_MODEL")
    if not DATA.exists():
        pytest.skip("needs the rows of the library; DSM_TEST_DATA names the directory")
    found = compare(load(MODEL), rows_of(name, DATA, 4))
    assert found.holds, found
