"""Integrated gradients of the input tokens (Sundararajan et al. 2017, arXiv 1703.01365), before and after pruning.

F is the logit of one option's token minus that of another's, at the first token by which the two differ: of the options
a softmax reads nothing else, and log-probabilities differ by the same. The path goes from zero embeddings to those of
the prompt. With a factor s_t on the embedding e_t of token t,

    IG_t = e_t . int_0^1 dF/de_t(alpha e) da = int_0^1 dF/ds_t(alpha 1) da,

the sum over the embedding's dimensions, so that the quadrature of the neurons' scores serves here too. A norm makes
alpha e and e the same until alpha reaches its epsilon, so that much of what happens on the path happens near zero, at
all scales: the rule works in t with alpha = t^POWER, which is the same integral along the same path.

Where all tokens move, a model of many layers has cliffs at every scale of alpha (the first token, on which attention
rests, is switched on among them), and hundreds of nodes may settle nothing. Where only some tokens move, say those of
a row's own text, and the template around them stays, the path is smooth enough. The completeness gap of every
attribution says how far it can be trusted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.benchmarks.encoding import Chat, Encoded, encode
from tasks.benchmarks.scoring import answers_unedited
from tasks.method.quadrature import Evaluate, Integral, adaptive
from tasks.method.silence import Neurons, silenced
from tasks.models.loading import Loaded
from tasks.models.memory import backward_tokens
from tasks.models.stack import DecoderStack, Projection
from tasks.runtime.errors import InputError

Rule = Callable[[Evaluate, tuple[Tensor, Tensor]], Integral]

POWER = 4
TOLERANCE, STABILITY, MAX_NODES = 0.05, 0.95, 64  # as `attribution` has them for neurons


def near_zero(evaluate: Evaluate, one: tuple[Tensor, Tensor]) -> Integral:
    """The adaptive rule in t, alpha = t^POWER.

    At 0 a deep model's gradient overflows, since every norm multiplies it by one over the root of its epsilon; the
    speed d alpha/dt is 0 there, and so is the integrand.
    """

    def in_t(nodes: Sequence[float]) -> tuple[Tensor, Tensor]:
        values, gradients = evaluate([t**POWER for t in nodes])
        speed = torch.tensor([POWER * t ** (POWER - 1) for t in nodes], dtype=torch.float64)[:, None]
        return values, torch.where(speed > 0, speed * gradients, 0.0)

    return adaptive(in_t, (one[0], POWER * one[1]), tolerance=TOLERANCE, stability=STABILITY, max_nodes=MAX_NODES)


@dataclass(frozen=True)
class Contrast:
    """What F compares: `tokens`, one of either option, behind `sequence`, the prompt and what both begin with."""

    sequence: list[int]
    tokens: tuple[int, int]


@dataclass(frozen=True)
class InputAttribution:
    """The tokens' attributions of one prompt, of the base and of the pruned model, to the same F.

    Attributes:
        tokens: the text of each token, [T].
        options: indices of the option that F is for and of the one that it is against.
        logprobs: of the options, float32 [options], by base and pruned model.
        before, after: IG of the T tokens.
    """

    tokens: list[str]
    options: tuple[int, int]
    logprobs: tuple[np.ndarray, np.ndarray]
    before: Integral
    after: Integral


def contrast(row: Encoded, option: int, other: int) -> Contrast:
    """The first tokens by which two options differ.

    Raises:
        InputError: the tokens of one option begin those of the other, so that nothing compares them.
    """
    shared: list[int] = []
    for first, second in zip(row.options[option], row.options[other], strict=False):
        if first != second:
            return Contrast([*row.prompt, *shared], (first, second))
        shared.append(first)
    raise InputError("options", "the tokens of one option begin those of another: they have no margin")


def along_the_embeddings(model: Any, wanted: Contrast, moved: range | None = None) -> Evaluate:
    """F and dF/ds, [alphas] and [alphas, moved], with the embeddings of the moved tokens (default: all) times alpha."""
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(torch.tensor([wanted.sequence], device=model.device))
    tokens = embeddings.shape[1]
    positions = list(range(tokens) if moved is None else moved)
    size = max(1, backward_tokens(model) // tokens)

    def evaluate(alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        values, gradients = [], []
        for start in range(0, len(alphas), size):
            part = embeddings.new_tensor(alphas[start : start + size])
            scale = part[:, None].repeat(1, len(positions)).requires_grad_(True)
            factors = embeddings.new_ones(len(part), tokens)
            factors[:, positions] = scale
            logits = model(inputs_embeds=factors[..., None] * embeddings, use_cache=False, logits_to_keep=1).logits
            margin = logits[:, -1, wanted.tokens[0]] - logits[:, -1, wanted.tokens[1]]
            values.append(margin.detach().double().cpu())
            gradients.append(torch.autograd.grad(margin.sum(), scale)[0].double().cpu())
        return torch.cat(values), torch.cat(gradients)

    return evaluate


def attribute_inputs(model: Any, wanted: Contrast, rule: Rule = near_zero, moved: range | None = None) -> Integral:
    """IG of each token of `wanted.sequence` to F, [T], with the gap of their sum from F(1) - F(0).

    Args:
        moved: the positions whose embeddings go from zero to their values (default: all); the others have no share.
    """
    evaluate = along_the_embeddings(model, wanted, moved)
    values, gradients = evaluate([1.0])
    found = rule(evaluate, (values[0], gradients[0]))
    scores = torch.zeros(len(wanted.sequence), dtype=torch.float64)
    scores[list(range(len(scores)) if moved is None else moved)] = found.scores
    return replace(found, scores=scores)


def before_and_after(
    loaded: Loaded,
    stack: DecoderStack,
    prompt: str,
    options: Sequence[str],
    layer: int,
    neurons: Sequence[int],
    *,
    projection: Projection = "gate_proj",
    chat: Chat = False,
    moved: range | None = None,
    rule: Rule = near_zero,
) -> InputAttribution:
    """What each token of any prompt does to the answer, before and after these neurons are silenced.

    F is for what the base model answers; against what the pruned one answers or, where that is the same, against the
    option that the base model gives the second place. Both models are asked for the same F. `moved`: as
    `attribute_inputs` has it.

    Raises:
        InputError: as `encode` and `contrast`.
    """
    row = encode(loaded.tokenizer, prompt, options, stack.context, chat=chat)
    base = answers_unedited(stack, [row]).logprobs[0][0]
    gone = Neurons(layer, neurons, projection)
    with silenced(stack, gone):
        pruned = answers_unedited(stack, [row]).logprobs[0][0]
    order = np.argsort(-base, kind="stable")
    answer, other = int(order[0]), int(pruned.argmax())
    if other == answer:
        other = int(order[1])
    wanted = contrast(row, answer, other)
    before = attribute_inputs(loaded.model, wanted, rule, moved)
    with silenced(stack, gone):
        after = attribute_inputs(loaded.model, wanted, rule, moved)
    texts = [loaded.tokenizer.decode([token]) for token in wanted.sequence]
    return InputAttribution(texts, (answer, other), (base, pruned), before, after)


def shares(scores: Tensor) -> np.ndarray:
    """Attributions by the sum of their sizes, float64 [T]: for display, between -1 and 1; zeros stay zeros."""
    total = float(scores.abs().sum())
    share: np.ndarray = scores.numpy() / total if total else np.zeros(len(scores))
    return share


def template_ends(sequences: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many tokens all prompts share at their beginning and, behind that, at their end: the template.

    A single prompt shares nothing with others, and so is all its own.
    """
    if len(sequences) < 2:
        return 0, 0
    shortest = min(map(len, sequences))
    head = _shared(sequences, shortest)
    return head, _shared([sequence[::-1] for sequence in sequences], shortest - head)


def _shared(sequences: Sequence[Sequence[int]], most: int) -> int:
    for position in range(most):
        if len({sequence[position] for sequence in sequences}) > 1:
            return position
    return most
