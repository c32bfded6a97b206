"""Prompts and options as token ids, split as in lm-evaluation-harness."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.benchmarks.benchmark_spec import DATE
from tasks.benchmarks.chat import chat_text
from tasks.runtime.errors import InputError


@dataclass(frozen=True)
class Encoded:
    """A prompt's token ids and, for each option, the token ids that follow.

    Attributes:
        given: the number of leading tokens of each option that are white space from the end of the prompt. The model
            need not predict them.
        merged: the prompt's last token changes when an option follows. Then the split is by position, as in
            lm-evaluation-harness: the option is the rest after the first len(prompt) tokens of prompt and option.
    """

    prompt: list[int]
    options: list[list[int]]
    given: int = 0
    merged: bool = False


Chat = bool | str
"""False for no chat template, a date for the chat template, or True for the default date."""

PROBES = ("a", "b", "0")  # texts with different tokens


def encode_prompt(tokenizer: Any, prompt: str, context: int, *, chat: Chat = False) -> list[int]:
    """Token ids of a prompt, after the special tokens that the tokenizer prepends.

    Raises:
        InputError: the prompt has no token, more tokens than the context, or one without an embedding; or the chat
            template cannot be used.
    """
    ids = _ids(tokenizer, prompt_text(tokenizer, prompt, chat), [] if chat else _prefix(tokenizer))
    if not ids:
        raise InputError("prompt", "is empty, so there is no position to read an answer from")
    if len(ids) > context:
        raise InputError("prompt", f"{len(ids)} tokens, but the model's context has {context}: {prompt[:60]!r}")
    return ids


def prompt_text(tokenizer: Any, prompt: str, chat: Chat) -> str:
    """The text that the model reads: the prompt, with the chat template applied if there is one."""
    return chat_text(tokenizer, prompt, DATE if chat is True else chat) if chat else prompt


def encode(tokenizer: Any, prompt: str, options: Sequence[str], context: int, *, chat: Chat = False) -> Encoded:
    """Token ids of the prompt and of each option after it.

    As in lm-evaluation-harness, white space at the end of the prompt belongs to the options. After an empty prompt the
    options follow the BOS (or EOS) token. After a chat template they lose their leading space.

    Raises:
        InputError: prompt and option are longer than the context, an option has no token, two options have the same
            tokens, a token has no embedding, or the chat template cannot be used.

    Example:
        >>> encode(tokenizer, "The film is", [" good", " bad"], context=2048).options
        [[1123], [3763]]
    """
    prefix = [] if chat else _prefix(tokenizer)
    text = prompt_text(tokenizer, prompt, chat)
    options = [option.removeprefix(" ") for option in options] if chat else options
    stem = text.rstrip()
    space = text[len(stem) :]
    stem_ids = _ids(tokenizer, stem, prefix) if stem else prefix or [_first_token(tokenizer)]
    wholes = [_ids(tokenizer, stem + space + option, prefix if stem else stem_ids) for option in options]
    if len(stem_ids) > context:
        raise InputError("prompt", f"{len(stem_ids)} tokens, but the model's context has {context}: {text[:60]!r}")
    for whole in wholes:
        if len(whole) > context:
            raise InputError("prompt", f"{len(whole)} tokens with its option, but the model's context has {context}")
    option_ids = [whole[len(stem_ids) :] for whole in wholes]
    for i, first in enumerate(option_ids):
        if not first:
            raise InputError("options", f"{options[i]!r} adds no token to the prompt")
        for j in range(i):
            if first == option_ids[j]:
                raise InputError("options", f"{options[j]!r} and {options[i]!r} have the same tokens for this model")
    merged = any(whole[: len(stem_ids)] != stem_ids for whole in wholes)
    given = _given(_ids(tokenizer, stem + space, prefix), wholes, len(stem_ids)) if stem and space else 0
    return Encoded(stem_ids, option_ids, given, merged)


def prefix_pair(encoded: Encoded) -> tuple[int, int] | None:
    """Indices of an option and of another option that begins with it, if there are any; otherwise None.

    The first of them is never less probable than the second.
    """
    for i, first in enumerate(encoded.options):
        for j, second in enumerate(encoded.options):
            if len(first) < len(second) and second[: len(first)] == first:
                return i, j
    return None


def _given(ids: list[int], wholes: list[list[int]], split: int) -> int:
    # The last token of an option must be predicted.
    same = all(whole[: len(ids)] == ids and len(whole) > len(ids) for whole in wholes)
    return len(ids) - split if same else 0


def _ids(tokenizer: Any, text: str, prefix: Sequence[int]) -> list[int]:
    """`prefix` and the token ids of the text without special tokens.

    Raises:
        InputError: the tokenizer fails, or a token has no embedding.
    """
    ids = [*prefix, *_tokenize(tokenizer, text, special=False)]
    check_known(tokenizer, ids)
    return ids


def _tokenize(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError("tokenizer", f"cannot tokenize {text[:60]!r}: {error}") from None
    return ids


def check_known(tokenizer: Any, ids: Sequence[int]) -> None:
    """Refuses a token without an embedding, such as one that was added to the tokenizer only.

    Raises:
        InputError: a token has no embedding.
    """
    rows = getattr(tokenizer, "embedding_rows", None)  # set by `tasks.models.loading`
    if rows is None:
        return
    for token in ids:
        if token is None or not 0 <= token < rows:
            name = None if token is None else tokenizer.convert_ids_to_tokens(token)
            raise InputError(
                "tokenizer", f"token {name!r} has the id {token}, but the model's embedding has {rows} rows"
            )


def _prefix(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer prepends to every text.

    Tokens that it appends are ignored: otherwise options would follow an end of text. Several texts are tried, since a
    special token can also occur in a text, so that one text does not always show where it begins.

    Raises:
        InputError: the tokenizer adds special tokens in other places than before and after a text.
    """
    if not _tokenize(tokenizer, "", special=True):
        return []
    prefixes: list[set[tuple[int, ...]]] = []
    for text in PROBES:
        alone, whole = (_tokenize(tokenizer, text, special=special) for special in (False, True))
        starts = [i for i in range(len(whole) - len(alone) + 1) if whole[i : i + len(alone)] == alone]
        prefixes.append({tuple(whole[:i]) for i in starts})
    shared = prefixes[0].intersection(*prefixes[1:])
    if not shared:
        raise InputError("tokenizer", "adds special tokens elsewhere than before and after a text")
    prefix = min(shared, key=len)
    return list(prefix)


def _first_token(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise InputError("prompt", "is empty, and the tokenizer has neither a BOS nor an EOS token")
