"""Many token sequences in one pass, in which each shared prefix is computed once.

The prompts of a benchmark begin with the same instruction, and the options of a row with the same prompt. The sequences
become a prefix tree with one token per node. The tree is a single sequence in which a token attends only to its
ancestors, and its position is its depth. For each node, a causal decoder then computes the same values as for the
sequence that ends there, without padding and without computing a prefix twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A unit must not be split between packs (a prompt with all its options): sequences of token ids, each with the
# positions whose next-token logits are needed.
Unit = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Pack:
    """A prefix tree of T tokens and the R nodes at which logits are needed.

    Attributes:
        tokens: int64 [T].
        positions: int64 [T], the depth of each token.
        ancestors: bool [T, T]; row i is true at i and at its ancestors.
        branches: int64 [T], the subtree after the trunk (the tokens that all sequences share, which come first) that a
            token belongs to, from 0; -1 on the trunk.
        reads: int64 [R], indices into the T tokens, each node once.
        read_of: (unit, sequence in the unit, position) -> index into `reads`.
        units: the indices of the units in this pack.
    """

    tokens: Tensor
    positions: Tensor
    ancestors: Tensor
    branches: Tensor
    reads: Tensor
    read_of: dict[tuple[int, int, int], int]
    units: list[int]


class _Tree:
    def __init__(self) -> None:
        self.children: dict[tuple[int, int], int] = {}
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.reads: dict[int, int] = {}
        self.read_of: dict[tuple[int, int, int], int] = {}
        self.units: list[int] = []

    def _child(self, node: int, token: int) -> int:
        child = self.children.setdefault((node, token), len(self.tokens))
        if child == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(node)
        return child

    def new_tokens(self, unit: Unit) -> int:
        """An upper bound of the number of nodes that the unit would add."""
        added = 0
        for sequence, _ in unit:
            node = -1
            for depth, token in enumerate(sequence):
                node = self.children.get((node, token), -2)
                if node == -2:
                    added += len(sequence) - depth
                    break
        return added

    def add(self, index: int, unit: Unit) -> None:
        self.units.append(index)
        for number, (sequence, positions) in enumerate(unit):
            path, node = [], -1
            for token in sequence:
                node = self._child(node, token)
                path.append(node)
            for position in positions:
                read = self.reads.setdefault(path[position], len(self.reads))
                self.read_of[index, number, position] = read

    def _branches(self) -> list[int]:
        """For each node, its subtree after the trunk; -1 on the trunk."""
        children: dict[int, int] = {}
        for parent in self.parents:
            children[parent] = children.get(parent, 0) + 1
        end = -1  # the last node of the trunk; its nodes are the first ones, since the first sequence contains them
        while children.get(end) == 1:
            end += 1
        branches: list[int] = []
        number = 0
        for node, parent in enumerate(self.parents):
            starts = node > end and parent == end
            branches.append(-1 if node <= end else number if starts else branches[parent])
            number += starts
        return branches

    def pack(self, device: torch.device) -> Pack:
        ancestors = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                ancestors[node] |= ancestors[parent]  # a parent always comes before its children
        return Pack(
            tokens=torch.tensor(self.tokens, device=device),
            positions=(ancestors.sum(1) - 1).to(device),
            ancestors=ancestors.to(device),
            branches=torch.tensor(self._branches(), device=device),
            reads=torch.tensor(list(self.reads), device=device),
            read_of=self.read_of,
            units=self.units,
        )


def pack(units: Sequence[Unit], *, max_tokens: int, device: torch.device) -> list[Pack]:
    """Packs the units into trees of at most `max_tokens` tokens (more only if a single unit needs more).

    Units of similar length share a pack, since attention pads the branches of a tree to the longest one.
    """
    packs = []
    tree = _Tree()
    for index in sorted(range(len(units)), key=lambda index: sum(len(sequence) for sequence, _ in units[index])):
        unit = units[index]
        if tree.tokens and len(tree.tokens) + tree.new_tokens(unit) > max_tokens:
            packs.append(tree.pack(device))
            tree = _Tree()
        tree.add(index, unit)
    if tree.tokens:
        packs.append(tree.pack(device))
    return packs
