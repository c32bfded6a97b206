"""Prompts and options as token ids, cut as lm-evaluation-harness cuts them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.benchmarks.benchmark_spec import DATE
from tasks.benchmarks.chat import chat_text
from tasks.runtime.errors import InputError


@dataclass(frozen=True)
class Encoded:
    """A prompt's token ids and, for each option, those that follow them.

    Attributes:
        given: how many of the first tokens of each option are white space that the prompt ends in, so that nobody has
            to predict them.
        merged: the prompt's last token is another one where an option follows. The cut is then by number, as in
            lm-evaluation-harness: the prompt as it is alone, and of prompt and option what comes behind as many tokens.
    """

    prompt: list[int]
    options: list[list[int]]
    given: int = 0
    merged: bool = False


Chat = bool | str
"""Whether to ask through the tokenizer's chat template: False, or the date that it is told; True is the default one."""

PROBES = ("a", "b", "0")  # texts that a tokenizer cuts into different tokens


def encode_prompt(tokenizer: Any, prompt: str, context: int, *, chat: Chat = False) -> list[int]:
    """Token ids of a prompt as it is written, with the special tokens that the tokenizer puts in front.

    Raises:
        InputError: the prompt has no token, more than the model's context, or one that the model does not know; or the
            chat template cannot be used.
    """
    ids = _ids(tokenizer, written(tokenizer, prompt, chat), [] if chat else _front(tokenizer))
    if not ids:
        raise InputError("prompt", "an empty prompt has no position to read an answer from")
    if len(ids) > context:
        raise InputError("prompt", f"{len(ids)} tokens, but the model's context has {context}: {prompt[:60]!r}")
    return ids


def written(tokenizer: Any, prompt: str, chat: Chat) -> str:
    """The text that the model reads: the prompt, or what the chat template makes of it."""
    return chat_text(tokenizer, prompt, DATE if chat is True else chat) if chat else prompt


def encode(tokenizer: Any, prompt: str, options: Sequence[str], context: int, *, chat: Chat = False) -> Encoded:
    """Prompt and options as the tokenizer cuts them where they are written one after the other.

    As in lm-evaluation-harness: white space at the end of the prompt counts as the beginning of the options, behind an
    empty prompt the options follow the token that begins a text, and behind a chat template they lose the one space
    they begin with.

    Raises:
        InputError: prompt and option are longer than the context, or two options are the same tokens, so that the
            model's answer could not tell them apart; a token that the model does not know; or the chat template cannot
            be used.
    """
    front = [] if chat else _front(tokenizer)
    text = written(tokenizer, prompt, chat)
    options = [option.removeprefix(" ") for option in options] if chat else options
    stem = text.rstrip()
    space = text[len(stem) :]
    stem_ids = _ids(tokenizer, stem, front) if stem else front or [_first_token(tokenizer)]
    wholes = [_ids(tokenizer, stem + space + option, front if stem else stem_ids) for option in options]
    if len(stem_ids) > context:
        raise InputError("prompt", f"{len(stem_ids)} tokens, but the model's context has {context}: {text[:60]!r}")
    for whole in wholes:
        if len(whole) > context:
            raise InputError("prompt", f"{len(whole)} tokens with its option, but the model's context has {context}")
    cut = [whole[len(stem_ids) :] for whole in wholes]
    for i, first in enumerate(cut):
        if not first:
            raise InputError("options", f"{options[i]!r} adds no token to the prompt")
        for j in range(i):
            if first == cut[j]:
                raise InputError("options", f"{options[j]!r} and {options[i]!r} are the same tokens to this model")
    merged = any(whole[: len(stem_ids)] != stem_ids for whole in wholes)
    given = _given(_ids(tokenizer, stem + space, front), wholes, len(stem_ids)) if stem and space else 0
    return Encoded(stem_ids, cut, given, merged)


def begins_another(encoded: Encoded) -> tuple[int, int] | None:
    """Two options, the tokens of the first of which begin those of the second: it can never be the less probable."""
    for i, first in enumerate(encoded.options):
        for j, second in enumerate(encoded.options):
            if len(first) < len(second) and second[: len(first)] == first:
                return i, j
    return None


def _given(ids: list[int], wholes: list[list[int]], cut: int) -> int:
    # The last token of an option is never given: something must be left to predict.
    same = all(whole[: len(ids)] == ids and len(whole) > len(ids) for whole in wholes)
    return len(ids) - cut if same else 0


def _ids(tokenizer: Any, text: str, front: Sequence[int]) -> list[int]:
    """`front` and the token ids of the text, without special tokens of the tokenizer's own.

    Raises:
        InputError: the tokenizer cannot cut the text, or a token is not one of the model's.
    """
    ids = [*front, *_cut(tokenizer, text, special=False)]
    check_known(tokenizer, ids)
    return ids


def _cut(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    except Exception as error:  # what tokenizers raises has no type of its own
        raise InputError("tokenizer", f"cannot cut {text[:60]!r}: {error}") from None
    return ids


def check_known(tokenizer: Any, ids: Sequence[int]) -> None:
    """Refuses a token that the model has no embedding of: one that was added to the tokenizer only.

    Raises:
        InputError: naming the token.
    """
    rows = getattr(tokenizer, "embedding_rows", None)  # `tasks.models.loading` knows it; a tokenizer alone does not
    if rows is None:
        return
    for token in ids:
        if token is None or not 0 <= token < rows:
            name = None if token is None else tokenizer.convert_ids_to_tokens(token)
            raise InputError(
                "tokenizer", f"token {name!r} has the id {token}, but the model's embedding has {rows} rows"
            )


def _front(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts in front of every text.

    What it appends is left out, whichever token that is: an option would follow the end of the text. A special token
    may also be one of the text's, so that one text does not always tell where it begins; that several do.

    Raises:
        InputError: the tokenizer adds special tokens in another way than before and after a text.
    """
    if not _cut(tokenizer, "", special=True):
        return []
    fronts: list[set[tuple[int, ...]]] = []
    for text in PROBES:
        alone, whole = (_cut(tokenizer, text, special=special) for special in (False, True))
        places = [i for i in range(len(whole) - len(alone) + 1) if whole[i : i + len(alone)] == alone]
        fronts.append({tuple(whole[:i]) for i in places})
    shared = fronts[0].intersection(*fronts[1:])
    if not shared:
        raise InputError("tokenizer", "adds special tokens in another way than before and after a text")
    front = min(shared, key=len)
    return list(front)


def _first_token(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise InputError("prompt", "is empty, and the tokenizer has no token that begins a text")
