"""The words of the rows, their tokens, and the words on which an answer depends."""

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.table import encode_rows
from tasks.explanation.input_attribution import attribute_inputs, contrast
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tasks.semantics.influence import NEW_TOKENS, _greedy, by_gradients, influential_words, named_words
from tasks.semantics.words import Occurrence, RowWords, contexts, occurrence_counts, own_words, word_spans
from tests.comparison.fit_data import fit_data
from tests.method.oracles import gauss_legendre
from tests.tiny import tiny_model, tiny_tokenizer


def encoded(prompts, **columns):
    frame = pd.DataFrame({"id": [str(i) for i in range(len(prompts))], "prompt": prompts, "gold": 0} | columns)
    return encode_rows(frame.assign(options=[[" yes", " no !"]] * len(prompts)), tiny_tokenizer(), 512)


def said(row):
    return [one.word for one in row.occurrences]


def test_a_word_is_letters_marks_and_digits():
    text = "It’s a 2-hour, well-made film -- don't___miss' it! தமிழ் 电影"
    assert [text[start:end] for start, end in word_spans(text)] == [
        *("It’s", "a", "2-hour", "well-made", "film", "don't", "miss", "it", "தமிழ்", "电影")
    ]


def test_the_template_is_left_out_at_its_ends_and_between_the_fields():
    prompts = [f"Read this: {a} Question: {b}? Answer:" for a, b in (("a Fine film", "fine"), ("dull", "is it bad"))]
    first, second = own_words(encoded(prompts), tiny_tokenizer())
    assert said(first) == ["a", "fine", "film", "fine"]
    assert said(second) == ["dull", "is", "it", "bad"]
    [only] = own_words(encoded(prompts[:1]), tiny_tokenizer())
    assert said(only)[:2] == ["read", "this"]
    assert occurrence_counts([first, second])["fine"] == 2
    assert contexts([first, second], "fine", 1) == [(0, "Read this: a ", "Fine", " film Question: fine? Answer:")]


def test_tokens_are_those_of_the_characters():
    rows = encoded(["x é 电影 fine", "y dull"])
    text, one = rows.table["prompt"][0], own_words(rows, tiny_tokenizer())[0]
    pieces = [bytes(tiny_tokenizer().decode([t]), "latin-1", "replace") for t in rows.encoded[0].prompt]
    assert len(pieces) == len(text.encode())
    for found in one.occurrences:
        start, end = (len(text[:i].encode()) for i in (found.start, found.end))
        assert found.tokens == tuple(range(start, end))


def test_a_chat_template_is_read_as_the_model_reads_it():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}<user>{{ turn.content }}{% endfor %}<assistant>"
    frame = pd.DataFrame({"id": ["a", "b"], "prompt": ["good film", "bad plot"], "gold": 0, "chat": True})
    rows = encode_rows(frame.assign(options=[["yes", "no"]] * 2), tokenizer, 512)
    first, second = own_words(rows, tokenizer)
    assert (said(first), said(second)) == (["good", "film"], ["bad", "plot"])
    assert first.text == "<user>good film<assistant>"


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(InputError, match=r"tokenizer\.json is needed"):
        own_words(encoded(["a b"]), object())


def test_influence_is_the_sum_of_the_attributions_of_a_words_tokens():
    there, rows = fit_data()
    own = own_words(rows, there.loaded.tokenizer)

    def rule(evaluate, one):
        return gauss_legendre(evaluate, one, 8)

    found = by_gradients(there.stack, rows.encoded[:3], own[:3], 2, rule)
    assert influential_words(there.loaded, there.stack, rows.encoded[:1], own[:1], 2)[0].rough in (True, False)
    row = rows.encoded[0]
    order = np.argsort(-answers_unedited(there.stack, [row]).logprobs[0][0], kind="stable")
    wanted = contrast(row, *order[:2])
    assert 0 < len(own[0].own) < len(row.prompt)  # the template stays in place
    scores = attribute_inputs(there.loaded.model, wanted, rule, moved=own[0].own).scores.numpy()
    sums = {}
    for one in own[0].occurrences:
        part = scores[one.tokens[0] : one.tokens[-1] + 1].sum() / np.abs(scores).sum()
        sums[one.word] = sums.get(one.word, 0) + part
    best = sorted(sums, key=lambda word: -abs(sums[word]))[:2]
    assert found[0].words == best
    np.testing.assert_allclose(found[0].shares, [sums[word] for word in best], rtol=1e-6)


def test_rows_without_a_margin_have_no_influence():
    loaded = Loaded(tiny_model("llama", torch.float32), tiny_tokenizer())
    frame = pd.DataFrame({"id": ["a"], "prompt": ["good film"], "options": [[" yes"]], "gold": [0]})
    rows = encode_rows(frame, loaded.tokenizer, 512)
    stack = DecoderStack(loaded.model)
    assert by_gradients(stack, rows.encoded, own_words(rows, loaded.tokenizer), 2) == [None]


ROW = RowWords("", range(1), [Occurrence(word, 0, 1, (0,)) for word in ("it's", "dull", "well-made", "film", "dull")])


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        (" dull, film", ["dull", "film"]),
        ("1. **Film**\n2. DULL (it says dull)\n3. great", ["film", "dull"]),
        ("Let us think: it’s “well-made”, so the answer is positive.", ["it's", "well-made"]),
        ("films are well made, dullness", []),
        ("", []),
    ],
)
def test_words_named_by_a_model(generation, words):
    assert named_words(generation, ROW) == words


def test_generation_is_greedy_and_ends_where_the_model_ends():
    there, rows = fit_data()
    ids = rows.encoded[0].prompt
    tokens = _greedy(there.loaded, ids)
    assert 0 < len(tokens) <= NEW_TOKENS
    for i, token in enumerate(tokens[:5]):
        assert token == int(there.loaded.model(torch.tensor([[*ids, *tokens[:i]]])).logits[0, -1].argmax())
    there.loaded.model.generation_config.eos_token_id = [tokens[2], 256]
    assert _greedy(there.loaded, ids) == tokens[: tokens.index(tokens[2])]
    own = own_words(rows, there.loaded.tokenizer)
    found = influential_words(there.loaded, there.stack, rows.encoded[:2], own[:2], 3, "generation")
    assert all(set(one.words) <= set(said(row)) and one.shares is None for one, row in zip(found, own, strict=False))
