"""F, the function whose value the scores attribute to neurons: a function of the logits after each adaptation prompt.

2507.09185 says only "the maximum logit". Here, this is `max_logit`, with the token fixed at the full model, or
`max_logit_remaximised`, the largest logit at each point of the path. The two targets on the options are ours: the
vocabulary is large, but the answer is read from the options alone. The targets use no labels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tasks.models.stack import Residuals
from tasks.runtime.errors import InputError

TARGETS = {
    "max_logit": "largest logit over the vocabulary at the last prompt position, token fixed at the full model",
    "max_logit_remaximised": "largest logit over the vocabulary at the last prompt position, at each point of the path",
    "max_option_logit": "largest logit among the options' first tokens, token fixed at the full model",
    "option_margin": "largest minus second largest logit of the options' first tokens, both fixed at the full model",
}
ON_OPTIONS = ("max_option_logit", "option_margin")

Target = Callable[[Tensor], Tensor]  # logits [.., R, vocabulary] -> F of each read's prompt [.., R]


def target_of(name: str, residuals: Residuals, firsts: Sequence[Sequence[int]] | None) -> Target:
    """F of the prompts of one pack.

    Args:
        name: one of TARGETS.
        firsts: for each prompt (of all packs), its options' first tokens; only targets on options use them.

    Raises:
        InputError: a logit is NaN or infinite, two prompts are the same, or a prompt's options all begin with the same
            token, so that there is no margin.
    """
    logits, packed = residuals.logits, residuals.pack
    if not torch.isfinite(logits).all():
        raise InputError("model", "its logits are NaN or infinite on the adaptation prompts")
    if len(packed.reads) != len(packed.units):
        raise InputError("adaptation", "two of the adaptation prompts are the same")
    if name == "max_logit_remaximised":
        return lambda logits: logits.max(-1).values
    if name == "max_logit":
        return _logit_of(logits.argmax(-1))
    if firsts is None:
        raise ValueError(f"{name} needs the options' first tokens")
    unit_of = {read: unit for (unit, _, _), read in packed.read_of.items()}
    ranked = [_ranked(logits[read], firsts[unit_of[read]]) for read in range(len(logits))]
    best = _logit_of(logits.new_tensor([tokens[0] for tokens in ranked], dtype=torch.long))
    if name == "max_option_logit":
        return best
    if any(len(tokens) < 2 for tokens in ranked):
        raise InputError("attribution.target", "option_margin: all options of a row begin with the same token")
    second = _logit_of(logits.new_tensor([tokens[1] for tokens in ranked], dtype=torch.long))
    return lambda logits: best(logits) - second(logits)


def _logit_of(tokens: Tensor) -> Target:
    """The logit of one token for each read: int64 [R]."""
    return lambda logits: logits.gather(-1, tokens.expand(logits.shape[:-1])[..., None])[..., 0]


def _ranked(logits: Tensor, tokens: Sequence[int]) -> list[int]:
    """The distinct tokens, sorted by descending logit; tokens with equal logits keep their order."""
    return sorted(dict.fromkeys(tokens), key=lambda token: -float(logits[token]))
