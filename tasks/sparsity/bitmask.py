"""Masks as bits: eight weights per byte in row-major order, the first weight in the highest bit."""

import numpy as np
import torch
from torch import Tensor


def pack_mask(mask: Tensor) -> Tensor:
    """Packs a boolean [d_out, d_in] to uint8 [ceil(d_out d_in / 8)] on the CPU; the last byte is padded with zeros."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack_mask(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """The boolean mask of this shape, on the CPU."""
    bits = np.unpackbits(packed.numpy(), count=shape[0] * shape[1])
    return torch.from_numpy(bits.astype(np.bool_)).view(shape)
