"""The words of a benchmark's rows: their positions in the text and their tokens in the prompt.

A word is a sequence of letters, marks and digits, joined by single apostrophes and hyphens; case is ignored. In scripts
without spaces one sequence has several words.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.benchmarks.encoding import Chat, prompt_text
from tasks.benchmarks.table import Rows
from tasks.explanation.input_attribution import template_ends
from tasks.runtime.errors import InputError

_RUN = re.compile(r"w+(?:['’‑-]w+)*")
AROUND = 40  # characters of context on either side


@dataclass(frozen=True)
class Occurrence:
    """A word in a row.

    Attributes:
        word: the word, normalised (`normalise`).
        start, end: the range of its characters in the row's text.
        tokens: the positions in the prompt of the tokens with its characters, ascending.
    """

    word: str
    start: int
    end: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class RowWords:
    """A row's text as the model reads it, and its part outside the template.

    Attributes:
        own: positions in the prompt between the first and last tokens that all prompts share.
        occurrences: the occurrences of words outside the template.
    """

    text: str
    own: range
    occurrences: list[Occurrence]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every word of a text, from left to right."""
    # Letters, marks and digits as "w": Python's \w omits the vowel signs of Indic scripts and Thai.
    shape = "".join("w" if unicodedata.category(character)[0] in "LMN" else character for character in text)
    return [match.span() for match in _RUN.finditer(shape)]


def normalise(text: str) -> str:
    """The text for comparisons of words: casefolded, with straight apostrophes."""
    return text.casefold().replace("’", "'")


def own_words(rows: Rows, tokenizer: Any) -> list[RowWords]:
    """The words of each row outside the template.

    The template is the first and last tokens that all prompts share, and any word that occurs in every row: a template
    may have text between the row's fields, and such a word does not distinguish rows. A single row has no template.

    Raises:
        InputError: the tokenizer does not give the characters of its tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("tokenizer", "does not give the characters of its tokens; a tokenizer.json is needed")
    prompts = [row.prompt for row in rows.encoded]
    head, tail = template_ends(prompts)
    result = []
    for prompt, ids, chat in zip(rows.table["prompt"], prompts, rows.chat, strict=True):
        text, occurrences = _read(tokenizer, prompt, ids, chat)
        own = range(head, len(ids) - tail)
        result.append(RowWords(text, own, [one for one in occurrences if any(token in own for token in one.tokens)]))
    rows_with = Counter(word for row in result for word in {one.word for one in row.occurrences})
    everywhere = {word for word, count in rows_with.items() if 1 < len(result) == count}
    return [replace(row, occurrences=[one for one in row.occurrences if one.word not in everywhere]) for row in result]


def _read(tokenizer: Any, prompt: str, ids: Sequence[int], chat: Chat) -> tuple[str, list[Occurrence]]:
    """The text of a prompt, and all its words."""
    text = prompt_text(tokenizer, prompt, chat).rstrip()
    if not text:
        return text, []
    read = tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=True)
    if read["input_ids"][: len(ids)] != list(ids):
        raise InputError("prompt", f"the tokenizer splits it differently than before: {text[:60]!r}")
    offsets = read["offset_mapping"][: len(ids)]
    occurrences = []
    for start, end in word_spans(text):
        tokens = tuple(i for i, (first, last) in enumerate(offsets) if first < end and last > start)
        if tokens:
            occurrences.append(Occurrence(normalise(text[start:end]), start, end, tokens))
    return text, occurrences


def occurrence_counts(rows: Sequence[RowWords]) -> Counter[str]:
    """The number of occurrences of each word in the rows."""
    return Counter(one.word for row in rows for one in row.occurrences)


def contexts(rows: Sequence[RowWords], word: str, count: int) -> list[tuple[int, str, str, str]]:
    """The first `count` occurrences of a word: index of the row, text before, the unnormalised word, text after."""
    occurrences = [
        (number, row.text, one) for number, row in enumerate(rows) for one in row.occurrences if one.word == word
    ]
    return [
        (number, text[max(0, one.start - AROUND) : one.start], text[one.start : one.end], text[one.end :][:AROUND])
        for number, text, one in occurrences[:count]
    ]
