"""Prompts and options as token ids, cut as lm-evaluation-harness cuts them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.pipeline.errors import InputError


@dataclass(frozen=True)
class Encoded:
    """A prompt's token ids and, for each option, those that follow them."""

    prompt: list[int]
    options: list[list[int]]


def encode_prompt(tokenizer: Any, prompt: str, context: int) -> list[int]:
    """Token ids of a prompt, with the special tokens that the tokenizer puts in front.

    Raises:
        InputError: the prompt has no token, or more than the model's context.
    """
    ids: list[int] = tokenizer(prompt)["input_ids"]
    if not ids:
        raise InputError("prompt", "an empty prompt has no position to read an answer from")
    if len(ids) > context:
        raise InputError("prompt", f"{len(ids)} tokens, but the model's context has {context}: {prompt[:60]!r}")
    return ids


def encode(tokenizer: Any, prompt: str, options: Sequence[str], context: int) -> Encoded:
    """Prompt and options as the tokenizer cuts them where they are written one after the other.

    White space at the end of the prompt counts as the beginning of the options, as in lm-evaluation-harness.

    Raises:
        InputError: prompt and option are longer than the context, or the tokens of one option are those of another or
            begin another, so that the model's answer could not tell them apart.
    """
    stem = prompt.rstrip()
    space = prompt[len(stem) :]
    stem_ids = encode_prompt(tokenizer, stem, context)
    encoded = []
    for option in options:
        whole: list[int] = tokenizer(stem + space + option)["input_ids"]
        if len(whole) > context:
            raise InputError("prompt", f"{len(whole)} tokens with its option, but the model's context has {context}")
        encoded.append(whole[len(stem_ids) :])
    for i, first in enumerate(encoded):
        if not first:
            raise InputError("options", f"{options[i]!r} adds no token to the prompt")
        for j, second in enumerate(encoded):
            if i < j and first == second:
                raise InputError("options", f"{options[i]!r} and {options[j]!r} are the same tokens to this model")
            if i != j and len(first) < len(second) and second[: len(first)] == first:
                raise InputError("options", f"the tokens of {options[i]!r} begin those of {options[j]!r}")
    return Encoded(stem_ids, encoded)
