"""Attention over a prefix tree in which a token sees its ancestors only.

All sequences of a pack share a trunk (the instruction of the prompt) and then branch (the rows). A token of one branch
sees nothing of another, so each branch attends to the trunk and to itself: the work grows with the longest row, not
with the number of rows in the pack.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "prefix_tree"  # in transformers' registry of attention functions


@dataclass(frozen=True)
class TreeMask:
    """Which tokens each of the T tokens of a pack sees, in blocks. A branch of fewer than m tokens is padded.

    Attributes:
        trunk: bool [P, P].
        branches: bool [B, 1, m, P + m].
        tokens: int64 [B * m], the tokens of the branches.
        places: int64 [T - P], where in `tokens` the tokens after the trunk are.
    """

    trunk: Tensor
    branches: Tensor
    tokens: Tensor
    places: Tensor

    def to(self, device: Any, non_blocking: bool = False) -> "TreeMask":
        """The same on another device; accelerate moves by this what it does not know."""
        parts = (self.trunk, self.branches, self.tokens, self.places)
        return TreeMask(*(part.to(device, non_blocking=non_blocking) for part in parts))


def tree_mask(allowed: Tensor, branch_of: Tensor) -> TreeMask:
    """The blocks of a mask.

    Args:
        allowed: bool [T, T], by ancestors and by what the layer's window lets through; true on the diagonal.
        branch_of: int64 [T], -1 on the trunk, which comes first, and then 0..B-1.
    """
    device = allowed.device
    members = [(branch_of == branch).nonzero()[:, 0] for branch in range(int(branch_of.max()) + 1)]
    stem = int((branch_of < 0).sum())
    longest = max(map(len, members), default=0)
    tokens = torch.zeros(len(members), longest, dtype=torch.long, device=device)
    branches = torch.zeros(len(members), 1, longest, stem + longest, dtype=torch.bool, device=device)
    places = torch.zeros(len(branch_of) - stem, dtype=torch.long, device=device)
    for number, member in enumerate(members):
        size = len(member)
        tokens[number, :size] = member
        branches[number, 0, :size, :stem] = allowed[member, :stem]
        branches[number, 0, :size, stem : stem + size] = allowed[member][:, member]
        # The softmax of a query that sees nothing is NaN, which a backward pass would spread.
        branches[number, 0, size:, stem] = True
        places[member - stem] = number * longest + torch.arange(size, device=device)
    return TreeMask(allowed[:stem, :stem], branches, tokens.flatten(), places)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: TreeMask | Tensor,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,  # already in the mask
    dropout: float = 0.0,  # 0: the model is in eval mode
    **unknown: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: query [C, heads, T, d], key and value [C, key heads, T, d].

    Args:
        attention_mask: of all tokens, or for a few queries bool [queries, T].

    Returns:
        [C, T, heads, d], and no weights.
    """
    if extra := {name: v for name, v in unknown.items() if v is not None and name not in HARMLESS}:
        raise TypeError(f"attention with {sorted(extra)} is not known")
    copies, heads, _, width = query.shape
    groups = key.shape[1]

    def together(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """[N, heads, t, d], [N, groups, s, d], mask [M, 1, t, s] with N a multiple of M -> [N, heads, t, d].

        The heads of a group become queries of one head: no copies of keys and values.
        """
        count, _, length, _ = q.shape
        share = heads // groups
        mask = mask.repeat(count // len(mask), 1, share, 1)
        q = q.reshape(count, groups, share * length, width)
        if softcap is None:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        else:
            weights = softcap * torch.tanh(q @ k.transpose(-1, -2) * (scaling / softcap))
            out = weights.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        return out.reshape(count, heads, length, v.shape[-1])

    if isinstance(attention_mask, Tensor):
        return together(query, key, value, attention_mask[None, None]).transpose(1, 2), None

    stem = len(attention_mask.trunk)
    out = []
    if stem:
        q, k, v = (part[:, :, :stem] for part in (query, key, value))
        out.append(together(q, k, v, attention_mask.trunk[None, None]).transpose(1, 2))
    if number := len(attention_mask.branches):

        def branch(part: Tensor) -> Tensor:  # [C, h, T, d] -> [C, B, h, m, d]
            chosen = part.index_select(2, attention_mask.tokens)
            return chosen.reshape(*part.shape[:2], number, -1, part.shape[-1]).transpose(1, 2)

        def with_trunk(part: Tensor) -> Tensor:  # [C, h, T, d] -> [C * B, h, P + m, d]
            trunk = part[:, None, :, :stem].expand(-1, number, -1, -1, -1)
            return torch.cat([trunk, branch(part)], dim=3).flatten(0, 1)

        own = together(branch(query).flatten(0, 1), with_trunk(key), with_trunk(value), attention_mask.branches)
        own = own.reshape(copies, number, heads, -1, own.shape[-1]).transpose(2, 3).flatten(1, 2)
        out.append(own.index_select(1, attention_mask.places))
    return torch.cat(out, dim=1), None


# Arguments that layers pass on and that do not change the result: the mask and the rotary tables contain them already.
HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}

AttentionInterface.register(NAME, attend)
