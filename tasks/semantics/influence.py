"""Step 1 of neuron semantic attribution (2503.01542): the words that an example's answer hangs on.

The paper asks a large language model with a chain-of-thought prompt, which it does not give. The default here is ours:
integrated gradients of the unpruned model's own answer, which any model has and which give the same words every time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from tasks.benchmarks.benchmark_spec import DATE
from tasks.benchmarks.encoding import Encoded, encode_prompt
from tasks.benchmarks.scoring import answers_unedited
from tasks.explanation.input_attribution import Rule, attribute_inputs, contrast, near_zero, shares
from tasks.method.quadrature import Integral, allowed
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tasks.semantics.words import RowWords, normalise, word_spans

By = Literal["gradients", "generation"]

TOLERANCE = 0.05  # of `near_zero`
NEW_TOKENS = 64
QUESTION = (
    "{prompt}\n\nThink step by step: which words of the text above decide the answer? "
    "Name only words that stand in it, separated by commas.\nWords:"
)


@dataclass(frozen=True)
class Influence:
    """The words that the answer to one example hangs on, the most influential first.

    Attributes:
        words: at most as many as were asked for.
        shares: of each, the sum of its tokens' attributions by the sum of the sizes of all tokens' (template and
            punctuation too); None where a model named the words.
        rough: the quadrature ended above its tolerance.
    """

    words: list[str]
    shares: list[float] | None = None
    rough: bool = False


def influential_words(
    loaded: Loaded,
    stack: DecoderStack,
    rows: Sequence[Encoded],
    words: Sequence[RowWords],
    count: int,
    by: By = "gradients",
    advance: Callable[[int], None] = lambda rows: None,
    date: str = DATE,
) -> list[Influence | None]:
    """The `count` most influential words of each row; None for one without a margin between two options.

    Args:
        words: those of the rows that are not the template's.
        by: `by_gradients` or `by_generation`.
        advance: called with the number of rows done.
        date: what the chat template is told by generation.
    """
    if by == "generation":
        return by_generation(loaded, stack, words, count, advance, date)
    return by_gradients(stack, rows, words, count, advance=advance)


def by_gradients(
    stack: DecoderStack,
    rows: Sequence[Encoded],
    words: Sequence[RowWords],
    count: int,
    rule: Rule = near_zero,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[Influence | None]:
    """By integrated gradients of the input tokens (`tasks.explanation.input_attribution`), to what the model answers.

    F is the margin of the answer over the model's second choice; only the row's own tokens move. A word's attribution
    is the sum over the tokens of all its occurrences in the row; a token with characters of two words counts for both.
    Words are ordered by its size.
    """
    found: list[Influence | None] = []
    for row, own, logprobs in zip(rows, words, answers_unedited(stack, rows).logprobs, strict=True):
        order = np.argsort(-logprobs[0], kind="stable")
        try:
            if len(order) < 2:
                raise InputError("options", "a single one has no margin")
            wanted = contrast(row, int(order[0]), int(order[1]))
            integral = attribute_inputs(stack.model, wanted, rule, moved=own.own or None)
        except InputError as error:
            if error.field != "options":
                raise
            found.append(None)
        else:
            found.append(_strongest(integral, own, count))
        advance(1)
    return found


def _strongest(integral: Integral, own: RowWords, count: int) -> Influence:
    share = shares(integral.scores)
    sums: dict[str, float] = {}
    for one in own.occurrences:
        sums[one.word] = sums.get(one.word, 0.0) + float(share[list(one.tokens)].sum())
    order = sorted((word for word in sums if sums[word]), key=lambda word: (-abs(sums[word]), word))[:count]
    rough = integral.error > allowed(integral.difference, TOLERANCE)
    return Influence(order, [sums[word] for word in order], rough)


def by_generation(
    loaded: Loaded,
    stack: DecoderStack,
    words: Sequence[RowWords],
    count: int,
    advance: Callable[[int], None] = lambda rows: None,
    date: str = DATE,
) -> list[Influence | None]:
    """By what the model itself says when it is asked for the words, as in the paper; the question is ours.

    Greedy and at most NEW_TOKENS long, through the chat template where the tokenizer has one. Models of less than a few
    billion parameters do this poorly: they repeat the first words of the text or name none, so that such a list says
    more of the model's habits than of its answer.

    Raises:
        InputError: a row and the question are longer than the model's context, or as `encode_prompt`.
    """
    chat = date if getattr(loaded.tokenizer, "chat_template", None) else False
    found: list[Influence | None] = []
    for own in words:
        question = QUESTION.replace("{prompt}", own.text)
        ids = encode_prompt(loaded.tokenizer, question, stack.context - NEW_TOKENS, chat=chat)
        found.append(Influence(named_words(loaded.tokenizer.decode(_greedy(loaded, ids)), own)[:count]))
        advance(1)
    return found


def named_words(generation: str, own: RowWords) -> list[str]:
    """The words of a generation that stand in the row and are not the template's, each once, in the order said."""
    there = {one.word for one in own.occurrences}
    said = (normalise(generation[start:end]) for start, end in word_spans(generation))
    return [word for word in dict.fromkeys(said) if word in there]


@torch.no_grad()
def _greedy(loaded: Loaded, ids: Sequence[int]) -> list[int]:
    """The tokens with the largest logits, one after the other: `generate` would apply the model's own penalties."""
    ends = {loaded.tokenizer.eos_token_id}
    said = getattr(loaded.model.generation_config, "eos_token_id", None)
    ends |= set(said) if isinstance(said, list) else {said}
    tokens: list[int] = []
    cache, new = None, torch.tensor([list(ids)], device=loaded.model.device)
    while len(tokens) < NEW_TOKENS:
        out = loaded.model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = int(out.logits[0, -1].argmax())
        if token in ends:
            break
        tokens.append(token)
        cache, new = out.past_key_values, torch.tensor([[token]], device=loaded.model.device)
    return tokens
