"""Perplexity of a text as in the code of SparseGPT and Wanda for WikiText-2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tasks.models.loading import Loaded
from tasks.models.products import Products
from tasks.runtime.errors import InputError


@dataclass(frozen=True)
class Perplexity:
    """Perplexity over windows of one length.

    Attributes:
        losses: mean negative log-likelihood per predicted token of each window, in nats, float64 [windows].
        window: the number of tokens of a window; all but the first are predicted.
    """

    losses: np.ndarray
    window: int

    @property
    def tokens(self) -> int:
        """The number of predicted tokens."""
        return len(self.losses) * (self.window - 1)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood per predicted token, in nats."""
        return float(self.losses.mean())

    @property
    def ppl(self) -> float:
        return math.exp(self.loss)

    @property
    def stderr(self) -> float:
        """Standard error of `loss` over the windows; NaN for a single window.

        It is somewhat too small, since neighbouring windows are from the same article. The standard error of `ppl` is
        about `ppl` times as large.
        """
        n = len(self.losses)
        return float(self.losses.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan


@torch.no_grad()
def perplexity(loaded: Loaded, tokens: Sequence[int], window: int) -> Perplexity:
    """exp of the mean negative log-likelihood over non-overlapping windows of a stream of token ids.

    Windows are independent; an incomplete last window is left out. For WikiText-2, the published stream consists of the
    rows of the test split, joined by two line feeds.

    Raises:
        InputError: the window has fewer than 2 tokens or more than the context, or the text is shorter than a window.
    """
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", 2**31)
    if not 2 <= window <= context:
        raise InputError("window", f"must be from 2 to the model's context of {context} tokens, not {window}")
    count = len(tokens) // window
    if not count:
        raise InputError("text", f"has {len(tokens)} tokens, fewer than a window of {window}")
    windows = torch.tensor(list(tokens[: count * window]), device=loaded.model.device).view(count, window)
    losses = []
    with Products():
        for ids in windows:
            logits = loaded.model(ids[None], use_cache=False).logits[0, :-1]
            losses.append(float(torch.nn.functional.cross_entropy(logits, ids[1:])))
    return Perplexity(np.array(losses), window)
