"""Prompts and options as token ids, cut as lm-evaluation-harness cuts them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.pipeline.errors import InputError


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


def encode_prompt(tokenizer: Any, prompt: str, context: int, *, chat: bool = False) -> list[int]:
    """Token ids of a prompt as it is written, with the special tokens that the tokenizer puts in front.

    Raises:
        InputError: the prompt has no token, or more than the model's context.
    """
    ids = _ids(tokenizer, chat_text(tokenizer, prompt) if chat else prompt, chat)
    if not ids:
        raise InputError("prompt", "an empty prompt has no position to read an answer from")
    if len(ids) > context:
        raise InputError("prompt", f"{len(ids)} tokens, but the model's context has {context}: {prompt[:60]!r}")
    return ids


def chat_text(tokenizer: Any, prompt: str) -> str:
    """The prompt as the one turn of the user, up to where the model's turn begins.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("chat_template", "is true, but this model's tokenizer has no chat template")
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def encode(tokenizer: Any, prompt: str, options: Sequence[str], context: int, *, chat: bool = False) -> Encoded:
    """Prompt and options as the tokenizer cuts them where they are written one after the other.

    As in lm-evaluation-harness: white space at the end of the prompt counts as the beginning of the options, behind an
    empty prompt the options follow the token that begins a text, and behind a chat template they lose the one space
    they begin with.

    Raises:
        InputError: prompt and option are longer than the context, or two options are the same tokens, so that the
            model's answer could not tell them apart.
    """
    if chat:
        prompt, options = chat_text(tokenizer, prompt), [option.removeprefix(" ") for option in options]
    stem = prompt.rstrip()
    space = prompt[len(stem) :]
    if stem:
        stem_ids = _ids(tokenizer, stem, chat)
        wholes = [_ids(tokenizer, stem + space + option, chat) for option in options]
    else:
        stem_ids = [_first_token(tokenizer)]
        wholes = [stem_ids + _ids(tokenizer, space + option, True) for option in options]
    if len(stem_ids) > context:
        raise InputError("prompt", f"{len(stem_ids)} tokens, but the model's context has {context}: {prompt[:60]!r}")
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
    return Encoded(stem_ids, cut, _given(tokenizer, stem, space, chat, wholes, len(stem_ids)), merged)


def begins_another(encoded: Encoded) -> tuple[int, int] | None:
    """Two options, the tokens of the first of which begin those of the second: it can never be the less probable."""
    for i, first in enumerate(encoded.options):
        for j, second in enumerate(encoded.options):
            if len(first) < len(second) and second[: len(first)] == first:
                return i, j
    return None


def _given(tokenizer: Any, stem: str, space: str, chat: bool, wholes: list[list[int]], cut: int) -> int:
    if not (stem and space):
        return 0
    ids = _ids(tokenizer, stem + space, chat)
    # The last token of an option is never given: something must be left to predict.
    same = all(whole[: len(ids)] == ids and len(whole) > len(ids) for whole in wholes)
    return len(ids) - cut if same else 0


def _ids(tokenizer: Any, text: str, plain: bool) -> list[int]:
    """Token ids; `plain`: without special tokens of the tokenizer's own (a chat template has written them already).

    An end-of-text token that the tokenizer appends is cut: an option would follow the end of the text.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=not plain)["input_ids"]
    end = tokenizer.eos_token
    if end and ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(end):
        return ids[:-1]
    return ids


def _first_token(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise InputError("prompt", "is empty, and the tokenizer has no token that begins a text")
