"""The contexts in which single neurons of one layer are active, and the tokens whose logits they change.

A neuron's activation is the input of its column of down_proj, h_j = act(g_j) u_j; it adds h_j W_down[:, j] to the
residual. If rows of down_proj are pruned, row j's activation is its output, which it adds to coordinate j.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.models.calls import Stop
from tasks.models.stack import DecoderStack, Projection

BEFORE, AFTER = 8, 3  # tokens of context around a top-activating token


@dataclass(frozen=True)
class Activations:
    """Activations of one layer on n prompts.

    Attributes:
        last: activations of all neurons at each prompt's last position, float64 [n, width].
        chosen: activations of some neurons at every position; for each prompt, float64 [T, chosen].
    """

    last: np.ndarray
    chosen: list[np.ndarray]


@torch.no_grad()
def activations(
    stack: DecoderStack,
    layer: int,
    prompts: Sequence[Sequence[int]],
    neurons: Sequence[int],
    projection: Projection = "gate_proj",
) -> Activations:
    """The activations of one layer of the unpruned model, prompt by prompt; later layers are not run."""
    outputs: list[Tensor] = []

    def keep(values: Tensor) -> None:
        outputs.append(values)
        raise Stop

    last, chosen = [], []
    handle = stack.mlps[layer].watch(projection, keep)
    try:
        for prompt in prompts:
            with suppress(Stop):
                stack.model(input_ids=torch.tensor([list(prompt)], device=stack.device), use_cache=False)
            hidden = outputs.pop()
            last.append(hidden[-1].double().cpu().numpy())
            chosen.append(hidden[:, list(neurons)].double().cpu().numpy())
    finally:
        handle.remove()
    return Activations(np.stack(last), chosen)


def top_activating(
    tokenizer: Any, prompts: Sequence[Sequence[int]], chosen: Sequence[np.ndarray], column: int, count: int
) -> list[dict[str, Any]]:
    """The positions with the largest absolute activations; a prefix that prompts share is counted once.

    Returns:
        For each: `token`, `before` and `after` (its context, decoded), `activation`, `prompt` (number) and `position`.
    """
    values = np.concatenate([part[:, column] for part in chosen])
    positions = [(number, position) for number, prompt in enumerate(prompts) for position in range(len(prompt))]
    seen: set[tuple[int, ...]] = set()
    contexts: list[dict[str, Any]] = []
    for index in np.argsort(-np.abs(values), kind="stable"):
        number, at = positions[index]
        ids = prompts[number]
        if (prefix := tuple(ids[: at + 1])) in seen:
            continue
        seen.add(prefix)
        contexts.append(
            {
                "token": tokenizer.decode([ids[at]]),
                "before": tokenizer.decode(ids[max(0, at - BEFORE) : at]),
                "after": tokenizer.decode(ids[at + 1 : at + 1 + AFTER]),
                "activation": float(values[index]),
                "prompt": number,
                "position": at,
            }
        )
        if len(contexts) == count:
            break
    return contexts


@torch.no_grad()
def direct_logits(
    stack: DecoderStack, layer: int, neurons: Sequence[int], projection: Projection = "gate_proj"
) -> Tensor:
    """Direct logit attribution: the effect of each neuron's direction on the logits without the later layers.

    The direction W_down[:, j] (after the layer's post-MLP norm, if it has one) passes the model's last norm and the
    unembedding. The logits of a zero direction (the effect of biases) are subtracted, and the mean over the vocabulary,
    which a softmax ignores. The norm rescales the direction, so the order of the tokens is meaningful; the values are
    those of a residual that consists only of this direction. A negative activation writes the opposite direction.

    Returns:
        float64 [neurons, vocabulary].
    """
    if projection == "down_proj":
        directions = torch.eye(stack.d_model, device=stack.device, dtype=stack.dtype)[list(neurons)]
    else:
        with stack.turn(layer):
            directions = stack.mlps[layer].directions(neurons).to(stack.dtype)
    _, after = stack.norms(layer)
    directions = torch.cat([directions, torch.zeros_like(directions[:1])])
    if after is not None:
        directions = after(directions)
    logits: Tensor = stack.model.get_output_embeddings()(stack.last_norm(directions)).double()
    logits = logits[:-1] - logits[-1]
    return (logits - logits.mean(-1, keepdim=True)).cpu()


def top_tokens(tokenizer: Any, logits: Tensor, count: int) -> dict[str, list[dict[str, Any]]]:
    """The tokens with the largest logits, `raised`, and the smallest, `lowered`: `token` and `logit` of each."""
    order = np.argsort(-logits.numpy(), kind="stable")

    def described(ids: np.ndarray) -> list[dict[str, Any]]:
        return [{"token": tokenizer.decode([int(i)]), "logit": float(logits[int(i)])} for i in ids]

    return {"raised": described(order[:count]), "lowered": described(order[::-1][:count])}
