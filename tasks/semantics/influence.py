"""Step 1 of neuron semantic attribution (2503.01542): the words that determine the answer to an example.

The paper asks a large language model with a chain-of-thought prompt that is not published. The default here is ours:
integrated gradients of the unpruned model's answer, which need no other model and are deterministic.
"""

from collections.abc import Sequence
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
    """The influential words of one example, the most influential first.

    Attributes:
        words: at most the requested number.
        shares: for each word, the sum of its tokens' attributions divided by the sum of the absolute attributions of
            all tokens (template and punctuation too); None if a model named the words.
        rough: the quadrature did not reach its tolerance.
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
    date: str = DATE,
) -> list[Influence | None]:
    """The `count` most influential words of each row; None for a row without a margin between two options.

    Args:
        words: the rows' words outside the template.
        by: selects `by_gradients` or `by_generation`.
        date: of the chat template, for generation.
    """
    if by == "generation":
        return by_generation(loaded, stack, words, count, date)
    return by_gradients(stack, rows, words, count)


def by_gradients(
    stack: DecoderStack,
    rows: Sequence[Encoded],
    words: Sequence[RowWords],
    count: int,
    rule: Rule = near_zero,
) -> list[Influence | None]:
    """The words by integrated gradients of the input tokens (`tasks.explanation.input_attribution`) for the answer.

    F is the margin of the answer over the model's second choice; only the row's own tokens move. A word's attribution
    is the sum over the tokens of all its occurrences in the row; a token with characters of two words counts for both.
    Words are ordered by its absolute value.
    """
    influences: list[Influence | None] = []
    for row, own, logprobs in zip(rows, words, answers_unedited(stack, rows).logprobs, strict=True):
        order = np.argsort(-logprobs[0], kind="stable")
        try:
            if len(order) < 2:
                raise InputError("options", "a single option has no margin")
            wanted = contrast(row, int(order[0]), int(order[1]))
            integral = attribute_inputs(stack.model, wanted, rule, moved=own.own or None)
        except InputError as error:
            if error.field != "options":
                raise
            influences.append(None)
        else:
            influences.append(_strongest(integral, own, count))
    return influences


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
    date: str = DATE,
) -> list[Influence | None]:
    """Asks the model itself for the words, as in the paper; the question is ours.

    Decoding is greedy, with at most NEW_TOKENS tokens, and uses the chat template if the tokenizer has one. Models with
    less than a few billion parameters do this poorly: they repeat the first words of the text or name no words, so the
    list is hardly related to the answer.

    Raises:
        InputError: a row and the question are longer than the context, or as for `encode_prompt`.
    """
    chat = date if getattr(loaded.tokenizer, "chat_template", None) else False
    influences: list[Influence | None] = []
    for own in words:
        question = QUESTION.replace("{prompt}", own.text)
        ids = encode_prompt(loaded.tokenizer, question, stack.context - NEW_TOKENS, chat=chat)
        influences.append(Influence(named_words(loaded.tokenizer.decode(_greedy(loaded, ids)), own)[:count]))
    return influences


def named_words(generation: str, own: RowWords) -> list[str]:
    """The words of a generation that occur in the row outside the template, each once, in order."""
    row_words = {one.word for one in own.occurrences}
    generated = (normalise(generation[start:end]) for start, end in word_spans(generation))
    return [word for word in dict.fromkeys(generated) if word in row_words]


@torch.no_grad()
def _greedy(loaded: Loaded, ids: Sequence[int]) -> list[int]:
    """Greedy decoding without the penalties of the model's generation config, which `generate` would apply."""
    ends = {loaded.tokenizer.eos_token_id}
    configured = getattr(loaded.model.generation_config, "eos_token_id", None)
    ends |= set(configured) if isinstance(configured, list) else {configured}
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
