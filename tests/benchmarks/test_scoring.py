"""Log-probabilities of options against a plain forward pass of each prompt with each option."""

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tasks.benchmarks.encoding import encode
from tasks.benchmarks.scoring import answers_unedited, exact_match, option_logprobs, read_options, unit
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tests.tiny import ALL, MIXTURES, tiny_model, tiny_tokenizer

ROWS = [("a film :", [" bad", " good", " so so"]), ("a fine film :", ["y", "n"]), ("x", [" is it ?", " no"])]


def plain_logprob(model, tokenizer, prompt, option):
    ids, start = tokenizer(prompt + option)["input_ids"], len(tokenizer(prompt)["input_ids"])
    logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids)))


@pytest.mark.parametrize("family", [*ALL, *MIXTURES])
def test_option_logprobs_equal_those_of_a_plain_forward(family):
    loaded = Loaded(tiny_model(family, torch.float32), tiny_tokenizer())
    prompts, options = zip(*ROWS, strict=True)
    for (prompt, choices), found in zip(ROWS, option_logprobs(loaded, prompts, options), strict=True):
        expected = [plain_logprob(loaded.model, loaded.tokenizer, prompt, option) for option in choices]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("template", ["$A <|end|>", "$A ! <|end|>", "<|end|> ? $A <|end|> <|end|>"])
@pytest.mark.parametrize("eos", [None, "?", "<|end|>"])
def test_option_logprobs_do_not_depend_on_what_the_tokenizer_appends(template, eos):
    loaded = Loaded(tiny_model("llama", torch.float32), tiny_tokenizer())
    tokenizer = loaded.tokenizer
    names = [word for word in template.split() if word != "$A"]
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=list(ids.items()))
    tokenizer.eos_token = eos
    front = [ids[name] for name in names[: template.split().index("$A")]]
    prompts, options = zip(*ROWS, strict=True)
    for (prompt, choices), found in zip(ROWS, option_logprobs(loaded, prompts, options), strict=True):
        for option, logprob in zip(choices, found, strict=True):
            begun, added = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, option))
            sequence = [*front, *begun, *added]
            logprobs = loaded.model(torch.tensor([sequence])).logits[0].log_softmax(-1)
            expected = sum(float(logprobs[i - 1, sequence[i]]) for i in range(len(front + begun), len(sequence)))
            assert logprob == pytest.approx(expected, rel=1e-4)


def test_predictions_margins_and_greedy_tokens():
    model, tokenizer = tiny_model("llama", torch.float32), tiny_tokenizer()
    rows = [encode(tokenizer, prompt, options, 100) for prompt, options in ROWS]
    answers = answers_unedited(DecoderStack(model), rows)
    for i, (prompt, options) in enumerate(ROWS):
        expected = np.array([plain_logprob(model, tokenizer, prompt, option) for option in options])
        assert answers.predicted()[0, i] == expected.argmax()
        gold = len(options) - 1
        margin = answers.margins([len(o) - 1 for _, o in ROWS])[0, i]
        assert margin == pytest.approx(expected[gold] - np.delete(expected, gold).max(), rel=1e-3, abs=1e-4)
        ids = tokenizer(prompt)["input_ids"]
        assert answers.greedy[i][0, :, 0].tolist() == [int(model(torch.tensor([ids])).logits[0, -1].argmax())] * len(
            options
        )


def test_equally_probable_options_go_to_the_first():
    model, tokenizer = tiny_model("llama", torch.float32), tiny_tokenizer()
    rows = [encode(tokenizer, "a", ["x", "y"], 100)]
    first, second = (option[0] for option in rows[0].options)
    model.lm_head.weight[second] = model.lm_head.weight[first]
    assert answers_unedited(DecoderStack(model), rows).predicted().tolist() == [[0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad):
    tokenizer = tiny_tokenizer()
    stack = DecoderStack(tiny_model("llama", torch.float32))
    rows = [encode(tokenizer, "a", ["x", "y"], 100)]
    [packed] = stack.pack([unit(row) for row in rows])
    logits = stack.clean(packed).logits[None].clone()
    logits[0, 0, 7] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        read_options(packed, rows, logits)


@pytest.mark.parametrize(
    ("option", "answer", "same"),
    [
        (" positive", " Positive.", True),
        (" positive", "positive", True),
        ("A", "B", False),
        (" no", " none", False),
        (" +", "-", False),
        ("+", " +", True),
    ],
)
def test_exact_match_forgives_case_spaces_and_punctuation(option, answer, same):
    tokenizer = tiny_tokenizer()
    assert exact_match(tokenizer, option, [*tokenizer(answer)["input_ids"], -1, -1]) is same
