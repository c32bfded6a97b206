"""Integrated gradients of the input tokens (Sundararajan et al. 2017, arXiv 1703.01365), before and after pruning.

F is the logit of one option's token minus that of another option, at the first token where they differ. The difference
of their log-probabilities is the same. The path goes from zero embeddings to those of the prompt. With a factor s_t on
the embedding e_t of token t,

    IG_t = e_t . int_0^1 dF/de_t(alpha e) da = int_0^1 dF/ds_t(alpha 1) da,

the sum over the embedding's dimensions, so that the quadrature of the neurons' scores can be used. A norm maps alpha e
and e to the same vector unless alpha is near its epsilon, so F changes mostly near zero, at all scales. Therefore the
rule integrates over t with alpha = t^POWER: the same integral along the same path.

If all tokens move, a deep model has steep changes at every scale of alpha (for example where the first token, an
attention sink, appears), and hundreds of nodes may not suffice. If only the tokens of a row's own text move, and the
template stays, the path is smooth enough. The completeness gap shows how reliable each attribution is.
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
from tasks.models.memory import room
from tasks.models.stack import DecoderStack, Projection
from tasks.runtime.errors import InputError

Rule = Callable[[Evaluate, tuple[Tensor, Tensor]], Integral]

POWER = 4
TOLERANCE, STABILITY, MAX_NODES = 0.05, 0.95, 64  # the settings of `attribution` for neurons


def near_zero(evaluate: Evaluate, one: tuple[Tensor, Tensor]) -> Integral:
    """The adaptive rule in t, alpha = t^POWER.

    At 0 a deep model's gradient overflows, since every norm multiplies it by 1 / sqrt(epsilon). There d alpha/dt is 0,
    and so is the integrand.
    """

    def in_t(nodes: Sequence[float]) -> tuple[Tensor, Tensor]:
        values, gradients = evaluate([t**POWER for t in nodes])
        speed = torch.tensor([POWER * t ** (POWER - 1) for t in nodes], dtype=torch.float64)[:, None]
        return values, torch.where(speed > 0, speed * gradients, 0.0)

    return adaptive(in_t, (one[0], POWER * one[1]), tolerance=TOLERANCE, stability=STABILITY, max_nodes=MAX_NODES)


@dataclass(frozen=True)
class Contrast:
    """The comparison F: the two `tokens` after `sequence`, the prompt and the options' common first tokens."""

    sequence: list[int]
    tokens: tuple[int, int]


@dataclass(frozen=True)
class InputAttribution:
    """The attributions of the same F to the tokens of one prompt, for the base and the pruned model.

    Attributes:
        tokens: the text of each token, [T].
        options: indices of the option with the positive sign in F and of the other one.
        logprobs: log-probabilities of the options under the base and the pruned model, float32 [options] each.
        before, after: IG of the T tokens.
    """

    tokens: list[str]
    options: tuple[int, int]
    logprobs: tuple[np.ndarray, np.ndarray]
    before: Integral
    after: Integral


def contrast(row: Encoded, option: int, other: int) -> Contrast:
    """The first tokens where two options differ.

    Raises:
        InputError: the tokens of one option begin those of the other.
    """
    shared: list[int] = []
    for first, second in zip(row.options[option], row.options[other], strict=False):
        if first != second:
            return Contrast([*row.prompt, *shared], (first, second))
        shared.append(first)
    raise InputError("options", "the tokens of one option begin with those of another, so there is no margin")


def along_the_embeddings(model: Any, wanted: Contrast, moved: range | None = None) -> Evaluate:
    """A function from alphas to F [alphas] and dF/ds [alphas, moved]; alpha scales the moved tokens (default: all)."""
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(torch.tensor([wanted.sequence], device=model.device))
    tokens = embeddings.shape[1]
    positions = list(range(tokens) if moved is None else moved)
    size = max(1, room(model).backward_tokens // tokens)

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
    """IG of each token of `wanted.sequence` for F, [T], with the gap between their sum and F(1) - F(0).

    Args:
        moved: the positions whose embeddings move from zero to their values (default: all); the others have IG 0.
    """
    evaluate = along_the_embeddings(model, wanted, moved)
    values, gradients = evaluate([1.0])
    integral = rule(evaluate, (values[0], gradients[0]))
    scores = torch.zeros(len(wanted.sequence), dtype=torch.float64)
    scores[list(range(len(scores)) if moved is None else moved)] = integral.scores
    return replace(integral, scores=scores)


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
    """The attribution of each token of a prompt, before and after these neurons are silenced.

    F is the logit of the base model's answer minus that of the pruned model's answer; if both are the same, minus that
    of the base model's second choice. Both models have the same F. `moved` is as in `attribute_inputs`.

    Raises:
        InputError: as `encode` and `contrast`.
    """
    row = encode(loaded.tokenizer, prompt, options, stack.context, chat=chat)
    base = answers_unedited(stack, [row]).logprobs[0][0]
    removed = Neurons(layer, neurons, projection)
    with silenced(stack, removed):
        pruned = answers_unedited(stack, [row]).logprobs[0][0]
    order = np.argsort(-base, kind="stable")
    answer, other = int(order[0]), int(pruned.argmax())
    if other == answer:
        other = int(order[1])
    wanted = contrast(row, answer, other)
    before = attribute_inputs(loaded.model, wanted, rule, moved)
    with silenced(stack, removed):
        after = attribute_inputs(loaded.model, wanted, rule, moved)
    texts = [loaded.tokenizer.decode([token]) for token in wanted.sequence]
    return InputAttribution(texts, (answer, other), (base, pruned), before, after)


def shares(scores: Tensor) -> np.ndarray:
    """Attributions divided by the sum of their absolute values, float64 [T], for display; zeros stay zeros."""
    total = float(scores.abs().sum())
    share: np.ndarray = scores.numpy() / total if total else np.zeros(len(scores))
    return share


def template_ends(sequences: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The numbers of tokens that all prompts share at their beginning and, after that, at their end: the template.

    A single prompt has no template.
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
