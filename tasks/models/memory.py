"""How much is computed at once, from the memory that may be used. It changes the time, not the result.

DSM_MEMORY is the most that a step may take: of the process's own memory on a CPU (mapped files are not counted), of the
GPU's memory on a GPU. Without it, what is free may be used.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from tasks.models.checks import FULL_MEMORY
from tasks.runtime.errors import InputError

MEMORY = "DSM_MEMORY"
LIMIT = 1 << 31  # bytes; more at once is not faster on a CPU
SHARE = 0.5  # of what is free, at most: the rest is for what is not counted here
LEAST = 1 / 64  # of the plan: a step that fails with that little does not fit

Result = TypeVar("Result")


def limit() -> int | None:
    """The bytes of DSM_MEMORY; None where it is not set.

    Raises:
        InputError: it is no number of bytes.
    """
    text = os.environ.get(MEMORY)
    if not text:
        return None
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not 0 < found < float("inf"):
        raise InputError(MEMORY, f"must be a number of bytes, such as 2.5e9, not {text!r}")
    return int(found)


def free(device: torch.device) -> int:
    """The bytes that may still be taken on a device."""
    allowed = limit()
    if device.type == "cuda":
        # What PyTorch keeps for later counts as used to the driver, and is free to us.
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        there = torch.cuda.mem_get_info(device)[0] + own
        return there if allowed is None else max(0, min(there, allowed - torch.cuda.memory_allocated(device)))
    there = psutil.virtual_memory().available
    return there if allowed is None else max(0, min(there, allowed - own_memory()))


def own_memory() -> int:
    """Bytes of this process that are no mapped file."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class Room:
    """What fits on the device of a model: bytes, and what a token takes of them.

    A token of a forward pass holds the largest tensors of one layer; one whose layer will be differentiated, what that
    layer keeps: 7.5 d_model + 3 d_ff numbers, as measured.

    Attributes:
        bytes: for activations, all together.
    """

    bytes: float
    d_model: int
    d_ff: int
    layers: int
    vocabulary: int
    itemsize: int

    @property
    def state(self) -> int:
        """Bytes of a token between two layers."""
        return self.d_model * self.itemsize

    @property
    def graph(self) -> int:
        """Bytes that a layer keeps of a token for the backward pass."""
        return int((7.5 * self.d_model + 3 * self.d_ff) * self.itemsize)

    @property
    def forward_tokens(self) -> int:
        """Tokens that one layer may compute at once without a graph."""
        return max(1, int(self.bytes / ((8 * self.d_model + 4 * self.d_ff) * self.itemsize)))

    @property
    def backward_tokens(self) -> int:
        """Tokens that one backward pass through all layers may carry."""
        return max(1, int(self.bytes / (self.layers * self.graph)))

    @property
    def reads(self) -> int:
        """Positions whose logits may be there at once, with their log-probabilities and what makes these."""
        return max(1, int(self.bytes / (4 * self.vocabulary * self.itemsize)))


def room(model: Any, share: float = 1.0) -> Room:
    """What fits now. `share`: of that, for a second try."""
    config = model.config.get_text_config()
    device = model.device
    allowed = SHARE * free(device)
    if device.type != "cuda":
        allowed = min(LIMIT, allowed)
    return Room(
        bytes=share * allowed,
        d_model=config.hidden_size,
        d_ff=config.intermediate_size,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        itemsize=torch.promote_types(model.dtype, torch.float32).itemsize,
    )


def at_hand(model: Any) -> bool:
    """Whether the weights stay where they are computed with between two visits of a layer.

    On a GPU they do. On a CPU they do if they are in the process's own memory, or if the system can keep the mapped
    files in its cache: in what is free, and in DSM_MEMORY where that is set.
    """
    if model.device.type == "cuda":
        return True
    weights: int = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    cache = psutil.virtual_memory().available
    if (allowed := limit()) is not None:
        cache = min(cache, allowed)
    return bool(weights <= max(cache, own_memory()))


def backward_tokens(model: Any) -> int:
    """Tokens that one backward pass of the plain model may carry."""
    return room(model).backward_tokens


_told = False


def with_less(work: Callable[[float], Result]) -> Result:
    """`work` with the share of the planned memory that it may use: 1, and half of that after each time it was too much.

    Says so once in the life of the process.
    """
    global _told
    share = 1.0
    while True:
        try:
            return work(share)
        except (MemoryError, RuntimeError) as error:  # PyTorch's OutOfMemoryError is a RuntimeError
            full = isinstance(error, MemoryError | torch.OutOfMemoryError) or FULL_MEMORY.search(str(error))
            if not full or share / 2 < LEAST:
                raise
        share /= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not _told:
            _told = True
            print("warning: out of memory; going on with smaller batches, which changes no result", file=sys.stderr)


def keep_freed_memory() -> None:
    """Lets the C library keep what tensors free, where it is glibc, or give it back at once where memory is limited.

    By default it gives large blocks back to the system at once, and every new tensor is paid for in page faults: a
    sixth of the time of the pruned runs in bfloat16.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if limit() is None:
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks up to this size come from the heap
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the heap does not shrink before this much is free
    else:
        libc.mallopt(-3, 1 << 20)  # larger ones are not; then memory is no more than what tensors hold
        libc.mallopt(-1, 1 << 24)
