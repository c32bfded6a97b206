"""How much is computed at once, from the memory that is free. It changes the time, not the result."""

import ctypes
import platform
from typing import Any

import psutil
import torch

LIMIT = 1 << 31  # bytes; more at once is not faster
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


def keep_freed_memory() -> None:
    """Lets the C library keep what tensors free, where it is glibc.

    By default it gives large blocks back to the system at once, and every new tensor is paid for in page faults: a
    sixth of the time of the pruned runs in bfloat16.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks up to this size come from the heap
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the heap does not shrink before this much is free
