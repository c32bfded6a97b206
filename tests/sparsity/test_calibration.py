"""Sequences drawn from texts and prompts."""

import json

import pytest

from tasks.runtime.errors import InputError
from tasks.sparsity.calibration import from_documents, from_prompts, from_stream, read_texts
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXTS = [f"{i} " * (5 + i) for i in range(10)]
PROMPTS = [[i] * (i % 4 + 1) for i in range(20)]


def ids(text):
    return TOKENIZER(text)["input_ids"]


def within(window, whole):
    return any(whole[i : i + len(window)] == window for i in range(len(whole) - len(window) + 1))


def test_jsonl_and_lines(tmp_path):
    lines = [" = Title = \n", "", " text with \u2028 in it \n"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "rows.txt").write_text("".join(line or " \n" for line in lines), encoding="utf-8")
    assert read_texts(tmp_path / "rows.jsonl") == lines
    assert read_texts(tmp_path / "rows.txt") == lines


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"txt": 1}\n', "a `text` in every row"),
        ("a.jsonl", b'{"text": 1}\n', "no texts"),
        ("a.txt", b"\xff\xfe\xff", "UTF-8"),
        ("a.txt", b"", "no texts"),
    ],
)
def test_files_that_are_no_texts(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(tmp_path / name)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_texts(tmp_path / "none.txt")


def test_documents_give_one_window_each():
    drawn = from_documents(TOKENIZER, TEXTS, name="t", count=5, length=12, seed=0)
    sources = [[i for i, text in enumerate(TEXTS) if within(window, ids(text))] for window in drawn.sequences]
    assert [len(window) for window in drawn.sequences] == [12] * 5
    assert all(len(found) == 1 for found in sources)
    assert len({found[0] for found in sources}) == 5


def test_too_few_long_documents():
    with pytest.raises(InputError, match="5 documents of more than 18 tokens; 6 are needed"):
        from_documents(TOKENIZER, TEXTS, name="t", count=6, length=18, seed=0)


def test_a_stream_is_the_texts_joined_by_spaces():
    drawn = from_stream(TOKENIZER, TEXTS, name="t", count=7, length=60, seed=0)
    assert [len(window) for window in drawn.sequences] == [60] * 7
    assert all(within(window, ids(" ".join(TEXTS))) for window in drawn.sequences)
    with pytest.raises(InputError, match="sequences of 1000 need more"):
        from_stream(TOKENIZER, TEXTS, name="t", count=1, length=1000, seed=0)


def test_prompts_stay_whole_and_are_used_once():
    drawn = from_prompts(PROMPTS, name="p", count=5, length=8, seed=0)
    used = []
    for sequence in drawn.sequences:
        assert 0 < len(sequence) <= 8
        while sequence:
            prompt = PROMPTS[sequence[0]]
            assert sequence[: len(prompt)] == prompt
            used.append(sequence[0])
            sequence = sequence[len(prompt) :]
    assert len(used) == len(set(used))


def test_prompts_that_are_used_up_or_too_long():
    assert len(from_prompts(PROMPTS, name="p", count=1, length=50, seed=0).sequences[0]) == 50
    with pytest.raises(InputError, match="fill 1 sequences of 100 tokens, not 2"):
        from_prompts(PROMPTS, name="p", count=2, length=100, seed=0)
    short = from_prompts(PROMPTS, name="p", count=5, length=1, seed=0)
    assert sorted(short.sequences) == [[0], [4], [8], [12], [16]]


@pytest.mark.parametrize("draw", [from_documents, from_stream])
def test_the_seed_decides(draw):
    first, again, other = (draw(TOKENIZER, TEXTS, name="t", count=4, length=10, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.sha256 == again.sha256 != other.sha256


def test_nothing_to_draw():
    with pytest.raises(InputError, match="must be positive"):
        from_prompts(PROMPTS, name="p", count=0, length=8, seed=0)
