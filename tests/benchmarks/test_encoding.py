"""Where prompts and options are cut, and the options that a model could not tell apart."""

import pytest

from tasks.benchmarks.encoding import encode, encode_prompt
from tasks.pipeline.errors import InputError
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_options_follow_the_prompt():
    encoded = encode(TOKENIZER, "Answer:", [" no", " yes"], 100)
    assert TOKENIZER.decode(encoded.prompt) == "Answer:"
    assert [TOKENIZER.decode(option) for option in encoded.options] == [" no", " yes"]


def test_space_at_the_end_of_the_prompt_begins_the_options():
    encoded = encode(TOKENIZER, "Answer:\n", ["A", "B"], 100)
    assert TOKENIZER.decode(encoded.prompt) == "Answer:"
    assert [TOKENIZER.decode(option) for option in encoded.options] == ["\nA", "\nB"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([" yes", " yes"], "' yes' and ' yes' are the same tokens"),
        ([" yes", " yes sir"], "the tokens of ' yes' begin those of ' yes sir'"),
        ([" no way", " no"], "the tokens of ' no' begin those of ' no way'"),
    ],
)
def test_options_that_cannot_be_told_apart_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        encode(TOKENIZER, "Answer:", options, 100)


def test_options_that_become_the_same_tokens_are_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Lowercase()
    with pytest.raises(InputError, match="' Yes' and ' yes' are the same tokens"):
        encode(tokenizer, "answer:", [" Yes", " yes"], 100)


def test_prompts_must_fit_the_context():
    assert len(encode_prompt(TOKENIZER, "x" * 100, 100)) == 100
    with pytest.raises(InputError, match="101 tokens, but the model's context has 100"):
        encode_prompt(TOKENIZER, "x" * 101, 100)
    with pytest.raises(InputError, match="103 tokens with its option"):
        encode(TOKENIZER, "x" * 100, [" no", " yes"], 102)


def test_an_empty_prompt_is_refused():
    with pytest.raises(InputError, match="empty prompt"):
        encode(TOKENIZER, "", ["a", "b"], 10)
