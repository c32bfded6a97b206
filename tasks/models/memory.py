"""Batch sizes from the memory that may be used. They change the time, not the result.

DSM_MEMORY is an upper limit in bytes for a step: for the memory of the process on a CPU, without mapped files, and for
the memory of the device on a GPU. Without DSM_MEMORY, the free memory is the limit.
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
from tasks.models.projections import expert_width, first_width
from tasks.runtime.errors import InputError

MEMORY = "DSM_MEMORY"
LIMIT = 3 << 28  # bytes on a CPU: 2 GiB are a tenth faster for weights in bfloat16, but no faster in float32
SHARE = 0.5  # of the free memory; the rest is for tensors that are not counted here
LEAST = 1 / 64  # the smallest share of the planned memory that is tried before a step fails

Result = TypeVar("Result")


def limit() -> int | None:
    """The value of DSM_MEMORY in bytes; None if it is not set.

    Raises:
        InputError: it is not a positive number.
    """
    text = os.environ.get(MEMORY)
    if not text:
        return None
    try:
        size = float(text)
    except ValueError:
        size = float("nan")
    if not 0 < size < float("inf"):
        raise InputError(MEMORY, f"must be a number of bytes, such as 2.5e9, not {text!r}")
    return int(size)


def free(device: torch.device) -> int:
    """Bytes that may still be allocated on a device."""
    allowed = limit()
    if device.type == "cuda":
        # The driver counts PyTorch's cache as used, but new tensors can take it.
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        there = torch.cuda.mem_get_info(device)[0] + own
        return there if allowed is None else max(0, min(there, allowed - torch.cuda.memory_allocated(device)))
    there = psutil.virtual_memory().available
    return there if allowed is None else max(0, min(there, allowed - own_memory()))


def own_memory() -> int:
    """Bytes of this process, without mapped files."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class Room:
    """The memory for activations on the device of a model, and what one token needs.

    In a forward pass, a token needs the largest tensors of one layer. For a backward pass, it needs what the graph of a
    layer keeps: 7.5 d_model + 3 d_ff numbers, as measured.

    Attributes:
        bytes: for all activations together.
    """

    bytes: float
    d_model: int
    d_ff: int
    layers: int
    vocabulary: int
    itemsize: int

    @property
    def state(self) -> int:
        """Bytes of the hidden state of a token."""
        return self.d_model * self.itemsize

    @property
    def graph(self) -> int:
        """Bytes that a layer keeps of a token for the backward pass."""
        return int((7.5 * self.d_model + 3 * self.d_ff) * self.itemsize)

    @property
    def forward_tokens(self) -> int:
        """Tokens that one layer can compute in one batch without a graph."""
        return max(1, int(self.bytes / ((8 * self.d_model + 4 * self.d_ff) * self.itemsize)))

    @property
    def backward_tokens(self) -> int:
        """Tokens of one backward pass through all layers."""
        return max(1, int(self.bytes / (self.layers * self.graph)))

    @property
    def reads(self) -> int:
        """Positions whose logits and log-probabilities fit at the same time."""
        return max(1, int(self.bytes / (4 * self.vocabulary * self.itemsize)))


def room(model: Any, share: float = 1.0) -> Room:
    """The memory that can be used now, times `share`."""
    config = model.config.get_text_config()
    device = model.device
    allowed = SHARE * free(device)
    if device.type != "cuda":
        allowed = min(LIMIT, allowed)
    return Room(
        bytes=share * allowed,
        d_model=config.hidden_size,
        d_ff=_values(lambda name: getattr(config, name, None), config.hidden_size),
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        itemsize=torch.promote_types(model.dtype, torch.float32).itemsize,
    )


def _values(get: Callable[[str], Any], d_model: int) -> int:
    """How many numbers the MLP computes for a token: d_ff; with experts, d_expert and the output of each expert."""
    if (experts := expert_width(get)) is not None:
        number, width = experts
        return number * (width + d_model)
    return first_width(get) or 4 * d_model


def at_hand(model: Any) -> bool:
    """Whether the weights of a layer stay in the memory of the computing device between two uses of the layer.

    On a GPU they do if they are on the GPU. On a CPU they do if they are in the process's own memory, or if the system
    can keep the mapped files in its cache: in free memory, and within DSM_MEMORY if that is set.
    """
    if model.device.type != "cpu":
        return all(parameter.device.type != "cpu" for parameter in model.parameters())
    weights: int = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    cache = psutil.virtual_memory().available
    if (allowed := limit()) is not None:
        cache = min(cache, allowed)
    return bool(weights <= max(cache, own_memory()))


_warned = False


def with_less(work: Callable[[float], Result]) -> Result:
    """Calls `work` with the share of the planned memory that it may use: 1 at first, and half after each failure.

    The first time that memory runs out in a process, a warning is printed.

    Raises:
        MemoryError, RuntimeError: the smallest share fails too, or the error has another reason.
    """
    global _warned
    share = 1.0
    if own_memory() > 2 * LIMIT:
        return_freed_memory()
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
        if not _warned:
            _warned = True
            print("warning: out of memory; going on with smaller batches, which changes no result", file=sys.stderr)


def return_freed_memory() -> None:
    """Returns freed memory to the system, also from between blocks in use. Otherwise glibc keeps it.

    Tensors of a new group of runs have other sizes and do not fit into the gaps, so that the process would grow. Each
    page that is returned costs a page fault later: for every sweep of a small model, that was a tenth of its time.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory, or to return it at once if DSM_MEMORY is set. Other C libraries are left alone.

    By default, glibc returns large blocks to the system, and each new tensor causes page faults. They took a sixth of
    the time of the pruned runs in bfloat16.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if limit() is None:
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: smaller blocks come from the heap
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the heap shrinks when more is free
    else:
        libc.mallopt(-3, 1 << 20)  # larger blocks are returned when they are freed
        libc.mallopt(-1, 1 << 24)
