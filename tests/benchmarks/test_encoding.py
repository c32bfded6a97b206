"""Where prompts and options are cut, and options that a model cannot tell apart."""

from pathlib import Path

import pandas as pd
import pytest
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tasks.benchmarks.encoding import encode, encode_prompt
from tasks.benchmarks.table import encode_rows
from tasks.runtime.errors import InputError
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
        ([" yes", " yes"], "' yes' and ' yes' have the same tokens"),
        ([" yes", " yes sir"], "the tokens of ' yes sir' begin with those of ' yes'"),
        ([" no way", " no"], "the tokens of ' no way' begin with those of ' no'"),
    ],
)
def test_options_that_cannot_be_told_apart_are_refused(options, message):
    with pytest.raises(InputError, match=f"row a: options: {message}"):
        encode_rows(table([options, options]), TOKENIZER, 100)


def table(options, prompt="Answer:", **columns):
    names = ["a", "b", "c"][: len(options)]
    return pd.DataFrame({"id": names, "prompt": prompt, "options": options, "gold": 0} | columns)


def test_options_of_a_row_of_which_one_begins_another_are_counted(capsys):
    rows = encode_rows(table([[" yes", " yes sir"], [" a", " b"], [" b", " c"]]), TOKENIZER, 100)
    assert len(rows.encoded) == 3
    assert capsys.readouterr().err == (
        "warning: in 1 of 3 rows, the tokens of one option begin with those of another, so it cannot be chosen\n"
    )


def test_options_that_become_the_same_tokens_are_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Lowercase()
    with pytest.raises(InputError, match="' Yes' and ' yes' have the same tokens"):
        encode(tokenizer, "answer:", [" Yes", " yes"], 100)


def test_prompts_must_fit_the_context():
    assert len(encode_prompt(TOKENIZER, "x" * 100, 100)) == 100
    with pytest.raises(InputError, match="101 tokens, but the model's context has 100"):
        encode_prompt(TOKENIZER, "x" * 101, 100)
    with pytest.raises(InputError, match="103 tokens with its option"):
        encode(TOKENIZER, "x" * 100, [" no", " yes"], 102)


def test_an_empty_prompt_is_refused():
    with pytest.raises(InputError, match="is empty"):
        encode_prompt(TOKENIZER, "", 10)


def test_options_after_an_empty_prompt_follow_the_bos_token():
    encoded = encode(TOKENIZER, "", [" one", " two"], 10)
    assert encoded.prompt == [TOKENIZER.eos_token_id]  # it has no other special token
    assert [TOKENIZER.decode(option) for option in encoded.options] == [" one", " two"]
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="prompt: is empty, and the tokenizer has neither a BOS nor an EOS token"):
        encode(tokenizer, "", [" one", " two"], 10)


def test_white_space_at_the_end_of_a_prompt_is_given():
    encoded = encode(TOKENIZER, "Answer: \n", ["A", "BC"], 100)
    assert encoded.given == 2
    assert [TOKENIZER.decode(option) for option in encoded.options] == [" \nA", " \nBC"]
    assert encode_prompt(TOKENIZER, "Answer:\n", 100) == TOKENIZER("Answer:\n")["input_ids"]
    assert encode(TOKENIZER, "Answer:", [" A", " B"], 100).given == 0


def special_tokens(template):
    """The tiny tokenizer with an end-of-text token that it puts where the template says."""
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<|end|>", end)])
    return tokenizer


def test_an_end_of_text_that_the_tokenizer_appends_is_cut():
    plain = encode(TOKENIZER, "Answer:", [" no", " yes"], 100)
    assert encode(special_tokens("$A <|end|>"), "Answer:", [" no", " yes"], 100) == plain
    both = special_tokens("<|end|> $A <|end|>")
    assert encode(both, "Answer:", [" no", " yes"], 100).prompt == [both.eos_token_id, *plain.prompt]
    assert encode(both, "Answer:", [" no", " yes"], 100).options == plain.options
    assert encode(both, "", [" no", " yes"], 100).options == plain.options
    written = encode(TOKENIZER, "Answer:<|end|>", [" no", " yes"], 100)
    assert written.prompt == [*plain.prompt, TOKENIZER.eos_token_id]


def surrounded(template, *extra):
    """The tiny tokenizer with special tokens of its own, put where the template says; `extra` are in its vocabulary."""
    tokenizer = tiny_tokenizer()
    names = [word for word in template.split() if word != "$A"]
    tokenizer.add_special_tokens({"additional_special_tokens": [name for name in names if name not in extra]})
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in dict.fromkeys(names)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("options", [[" no", " yes"], ["A", "B"], ["a", "b"], [" no<end>", " yes"]])
@pytest.mark.parametrize("prompt", ["Answer:", "Answer:\n", "<end> Answer<end>", "a", "", "<|end|>"])
@pytest.mark.parametrize(
    ("template", "front"),
    [
        ("$A <end>", []),
        ("$A <sep> <end>", []),
        ("$A <end> <end>", []),
        ("<cls> $A", ["<cls>"]),
        ("<cls> <cls> $A <cls>", ["<cls>", "<cls>"]),
        ("<cls> <sop> $A <sep> <|end|>", ["<cls>", "<sop>"]),
        ("a $A a", ["a"]),
        ("b a $A", ["b", "a"]),
    ],
)
def test_special_tokens_that_the_tokenizer_adds_stand_in_front_or_are_left_out(template, front, prompt, options):
    tokenizer = surrounded(template, "<|end|>", "a", "b")
    encoded = encode(tokenizer, prompt, options, 100)
    begin = tokenizer.convert_tokens_to_ids(front) or ([] if prompt.strip() else [tokenizer.eos_token_id])
    for option, ids in zip(options, encoded.options, strict=True):
        written = tokenizer(prompt + option, add_special_tokens=False)["input_ids"]
        assert encoded.prompt + ids == [*begin, *written]
    stem = tokenizer(prompt.strip("\n"), add_special_tokens=False)["input_ids"]
    assert encoded.prompt == [*begin, *stem]
    if prompt:
        assert encode_prompt(tokenizer, prompt, 100) == [
            *tokenizer.convert_tokens_to_ids(front),
            *tokenizer(prompt, add_special_tokens=False)["input_ids"],
        ]


def merging(first, second):
    """The tiny tokenizer with one merge."""
    tokenizer = tiny_tokenizer()
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if i < 256}
    tokenizer.backend_tokenizer.model = BPE(vocab=vocabulary | {first + second: 300}, merges=[(first, second)])
    return tokenizer


def test_a_tokenizer_that_joins_prompt_and_option_is_cut_by_number_and_told(capsys):
    tokenizer = merging(":", "a")
    encoded = encode(tokenizer, "Answer:", ["abc", "xyz"], 100)
    assert encoded.merged
    assert encoded.prompt == tokenizer("Answer:")["input_ids"]
    assert tokenizer.decode(encoded.options[0]) == "bc"  # as lm-evaluation-harness cuts it
    encode_rows(table([["abc", "xyz"], ["x", "y"]]), tokenizer, 100)
    assert capsys.readouterr().err == (
        "warning: in 1 of 2 rows, the tokenizer merges the end of the prompt with the option into other tokens\n"
    )
    with pytest.raises(InputError, match="'a' adds no token to the prompt"):
        encode(tokenizer, "Answer:", ["a", "b"], 100)


CHAT = "<|end|>{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}{{ '<assistant>\n' }}"


def test_chat_template():
    tokenizer = special_tokens("<|end|> $A")
    with pytest.raises(InputError, match="chat_template: is true, but this model's tokenizer has no chat template"):
        encode(tokenizer, "Q:", [" A", " B"], 100, chat=True)
    tokenizer.chat_template = CHAT
    text = "<|end|><user>Q:<assistant>\n"
    assert encode_prompt(tokenizer, "Q:", 100, chat=True) == TOKENIZER(text)["input_ids"]  # no second special token
    encoded = encode(tokenizer, "Q:", [" A", " B c"], 100, chat=True)
    assert TOKENIZER.decode(encoded.prompt) == text.rstrip()
    assert [TOKENIZER.decode(option) for option in encoded.options] == ["\nA", "\nB c"]
    assert encoded.given == 1
    rows = encode_rows(table([[" A", " B c"]], prompt="Q:", chat=[True]), tokenizer, 100)
    assert rows.encoded == [encoded]


def test_a_token_outside_of_the_model_s_embedding_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.embedding_rows = 257
    told = "token '<new>' has the id 257, but the model's embedding has 257 rows"
    for prompt, options in (("A <new>:", [" A", " B"]), ("Q:", [" A", " B<new>"]), ("", [" A", " B<new>"])):
        with pytest.raises(InputError, match=f"row a: tokenizer: {told}"):
            encode_rows(table([options], prompt=prompt), tokenizer, 100)
    with pytest.raises(InputError, match=told):
        encode_prompt(tokenizer, "<new>", 100)
    tokenizer.embedding_rows = 258
    assert encode(tokenizer, "A <new>:", [" A", " B"], 100).prompt.count(257) == 1


def test_a_text_that_the_tokenizer_cannot_cut_is_refused():
    tokenizer = tiny_tokenizer()
    words = {"a": 0, "b": 1, "no": 2, "yes": 3}
    tokenizer.backend_tokenizer.model = WordLevel(words, unk_token="[none]")
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    assert encode(tokenizer, "a b", [" no", " yes"], 100).options == [[2], [3]]
    with pytest.raises(InputError, match="tokenizer: cannot tokenize 'a strange word': WordLevel error"):
        encode(tokenizer, "a strange word", [" no", " yes"], 100)


@pytest.mark.real
def test_the_chat_template_of_smollm2():
    directory = Path(__file__).parents[2] / "data" / "models" / "smollm2-135m-instruct"
    if not directory.exists():
        pytest.skip("needs the default model in data/models: `dsm run` makes it")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encoded = encode(tokenizer, "Is it good?", [" No", " Yes"], 1000, chat=True)
    prompt = tokenizer.decode(encoded.prompt)
    assert prompt.endswith("<|im_start|>user\nIs it good?<|im_end|>\n<|im_start|>assistant")
    assert [tokenizer.decode(option) for option in encoded.options] == ["\nNo", "\nYes"]
    assert encoded.given == 1
    assert not encoded.merged
    turns = [{"role": "user", "content": "Is it good?"}]
    whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encode_prompt(tokenizer, "Is it good?", 1000, chat=True) == whole
