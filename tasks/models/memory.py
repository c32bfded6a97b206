"""How much is computed at once, from the memory that is free. It changes the time, not the result."""

from typing import Any

import psutil
import torch

LIMIT = 1 << 30  # bytes; more at once is not faster
SHARE = 0.5  # of what is free, at most


def _tokens(model: Any, numbers: int) -> int:
    """How many tokens fit if each holds so many numbers."""
    device = model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(min(LIMIT, SHARE * free) / (numbers * model.dtype.itemsize))


def forward_tokens(model: Any) -> int:
    """Tokens that one forward pass may carry: it holds some copies of what one layer makes of each."""
    config = model.config.get_text_config()
    return _tokens(model, 4 * (8 * config.hidden_size + 3 * config.intermediate_size))


def backward_tokens(model: Any) -> int:
    """Tokens that one backward pass may carry: what each layer makes of each is kept."""
    config = model.config.get_text_config()
    return _tokens(model, config.num_hidden_layers * (16 * config.hidden_size + 10 * config.intermediate_size))
