"""The routing of tokens in a mixture of experts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routed:
    """Tokens and the experts that they are routed to.

    Attributes:
        x: [N, d_model].
        index: int64 [N, k], the experts of each token.
        weights: [N, k], the weight of each of these experts.
    """

    x: Tensor
    index: Tensor
    weights: Tensor

    def by_expert(self) -> list[tuple[int, Tensor]]:
        """The experts that have tokens, ascending, each with its pairs: int64, token * k + slot, ascending."""
        order = self.index.flatten().argsort(stable=True)
        experts, counts = torch.unique_consecutive(self.index.flatten()[order], return_counts=True)
        return list(zip(experts.tolist(), torch.split(order, counts.tolist()), strict=True))

    def together(self, parts: Sequence[Tensor], pairs: Sequence[Tensor]) -> Tensor:
        """The sum over the experts of each token, [.., N, d_model], of their parts [.., pairs, d_model].

        The parts are added in the order of the token's experts: on a GPU, an `index_add` would add in any order.
        """
        inverse = torch.cat(list(pairs)).argsort()
        ordered = torch.cat(list(parts), -2).index_select(-2, inverse)
        return ordered.reshape(*ordered.shape[:-2], *self.index.shape, -1).sum(-2)


def unreached(stack: Any, run: Callable[[], Any]) -> list[list[int]]:
    """The experts of each layer to which no token is routed.

    Args:
        stack: a `DecoderStack` of a mixture of experts.
        run: runs the model, or the stack, over the tokens. In a packed run of the stack, the last layer
            computes only the tokens whose logits are read.
    """
    seen: list[set[int]] = [set() for _ in stack.mlps]

    def keep(layer: int, _: Any, inputs: tuple[Tensor, ...]) -> None:
        seen[layer].update(inputs[1].flatten().tolist())

    handles = [mlp.inside.register_forward_pre_hook(partial(keep, layer)) for layer, mlp in enumerate(stack.mlps)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [sorted(set(range(mlp.number)) - reached) for mlp, reached in zip(stack.mlps, seen, strict=True)]
