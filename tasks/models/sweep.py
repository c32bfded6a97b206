"""Sweeps over the layers: each layer of the stack is visited once with everything that has to pass through it.

A run that edits layer l goes through the layers above l. Here many such runs go up together, layer by layer, and for
gradients down again, so that the weights of a layer are needed once (or twice) for all of them, wherever these lie:
`DecoderStack.turn` brings them. The numbers are bit for bit those of one run after the other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tasks.models.memory import Room, room
from tasks.models.products import Differences, Kept, Precision, Products
from tasks.models.projections import Projection
from tasks.models.stack import DecoderStack, Residuals, edited

# Logits [C, R, vocabulary] of a pack -> F of each of its reads [C, R].
Target = Callable[[Tensor], Tensor]


# -- runs without some neurons ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Without:
    """Runs of one pack, each without a set of rows of a projection of one layer.

    Attributes:
        layer: the number of layers for one run of the unedited model; `sets` is not looked at.
    """

    residuals: Residuals
    layer: int
    sets: Sequence[np.ndarray] = ()


def logits_without(
    stack: DecoderStack,
    residuals: Residuals,
    layer: int,
    sets: Sequence[np.ndarray],
    projection: Projection = "gate_proj",
) -> Iterator[Tensor]:
    """Logits at a pack's reads with these rows of a projection of one layer zeroed: `all_logits_without` of one run."""
    runs = [Without(residuals, layer, sets)]
    for _, part in all_logits_without(stack, runs, room(stack.model), projection, residuals.precision):
        yield part


@torch.no_grad()
def all_logits_without(
    stack: DecoderStack,
    runs: Sequence[Without],
    there: Room,
    projection: Projection = "gate_proj",
    precision: Precision = "float32",
) -> Iterator[tuple[int, Tensor]]:
    """Logits at the packs' reads of all runs, by one sweep up; unedited passes that are not finished go up with them.

    Yields:
        The number of a run and [c, R, vocabulary] for the next c of its sets, as many as memory allows at once.
    """
    packs = _by_pack([run.residuals for run in runs])
    hidden: dict[int, Tensor] = {}
    for index in range(_first(runs), len(stack)):
        with stack.turn(index):
            for residuals, numbers in packs:
                below = [number for number in numbers if runs[number].layer < index]
                here = [number for number in numbers if runs[number].layer == index]
                kept = Kept(stack.rounded) if below and precision == "bfloat16" else None
                if here or kept:
                    entering = stack.entering(residuals, index, kept)
                # In bfloat16 the layers above the edited ones are kept, too.
                if precision == "bfloat16" or any(runs[number].layer > index for number in numbers):
                    stack.advance(residuals, index)
                for number in below:
                    with Products() if kept is None else Differences(kept):
                        hidden[number] = _through(stack, index, hidden[number], residuals, there)
                for number in here:
                    with Products():
                        hidden[number] = stack.leaving_without(index, entering, runs[number].sets, projection)
    for number, run in enumerate(runs):
        if run.layer == len(stack):
            yield number, run.residuals.logits[None]
            continue
        for part in torch.split(hidden.pop(number), max(1, there.reads // len(run.residuals.pack.reads))):
            with Products():
                yield number, stack.head(part)


def finish(stack: DecoderStack, passes: Sequence[Residuals]) -> None:
    """Takes unedited passes to their end by one sweep."""
    for index in range(len(stack)):
        if any(len(residuals.inputs) == index + 1 for residuals in passes):
            with stack.turn(index):
                for residuals in passes:
                    stack.advance(residuals, index)


def _by_pack(all_residuals: Sequence[Residuals]) -> list[tuple[Residuals, list[int]]]:
    """Each unedited pass once, with the numbers of the runs that start from it."""
    found: dict[int, tuple[Residuals, list[int]]] = {}
    for number, residuals in enumerate(all_residuals):
        found.setdefault(id(residuals), (residuals, []))[1].append(number)
    return list(found.values())


def _first(runs: Sequence[Without]) -> int:
    """The first layer that something has to pass through."""
    return min(min(run.layer, len(run.residuals.inputs) - 1) for run in runs)


def _through(stack: DecoderStack, index: int, hidden: Tensor, residuals: Residuals, there: Room) -> Tensor:
    size = max(1, there.forward_tokens // len(residuals.pack.tokens))
    parts = [stack.run_layer(index, part, residuals) for part in torch.split(hidden, size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


# -- gradients along paths --------------------------------------------------------------------------------------------


@dataclass
class Path:
    """Points of one pack's path: the rows of a projection of one layer, or of all layers, times each of `alphas`.

    Attributes:
        layer: None for the rows of all layers.
        by_position: differentiate by what the rows give at each position, not by the factor on the rows.
    """

    residuals: Residuals
    layer: int | None
    alphas: Sequence[float]
    by_position: bool = False

    @property
    def first(self) -> int:
        return 0 if self.layer is None else self.layer

    def tokens(self) -> int:
        return len(self.alphas) * len(self.residuals.pack.tokens)


@dataclass
class Found:
    """F of each point, [alphas] and the gradients by layer: [alphas, width], or [alphas, tokens, width] by position."""

    totals: Tensor
    gradients: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class _Piece:
    """One layer of one path: what it takes and, if its graph is kept, what it gives."""

    leaves: list[Tensor]
    through: Callable[[list[Tensor]], Tensor]
    out: Tensor | None = None

    def up(self, keep: bool) -> Tensor:
        out = self.through(self.leaves)
        self.out = out if keep else None
        return out.detach()

    def down(self, gradient: Tensor) -> Sequence[Tensor]:
        out = self.through(self.leaves) if self.out is None else self.out
        self.out = None
        return torch.autograd.grad(out, self.leaves, gradient)


def gradients(
    stack: DecoderStack,
    paths: Sequence[Path],
    target: Callable[[Residuals], Target],
    there: Room,
    projection: Projection = "gate_proj",
) -> list[Found]:
    """F and its gradient at all points of all paths, by one sweep up and one down.

    What enters each layer is stored. The graph of a layer is kept, from the last layer down, where memory allows;
    elsewhere the layer is computed again on the way down, which gives the same bits.

    Args:
        target: F of a pack, once its unedited pass is finished.
    """
    keep = _kept_layers(stack, paths, there)
    packs = _by_pack([path.residuals for path in paths])
    hidden: list[Tensor] = [path.residuals.inputs[0].expand(len(path.alphas), -1, -1) for path in paths]
    pieces: list[dict[int, _Piece]] = [{} for _ in paths]
    for index in range(len(stack)):
        ready = [path.first <= index or len(path.residuals.inputs) == index + 1 for path in paths]
        if not any(ready):
            continue
        with stack.turn(index), torch.enable_grad(), Products():
            for residuals, numbers in packs:
                stack.advance(residuals, index)
                for number in numbers:
                    path = paths[number]
                    if index < path.first:
                        continue
                    piece = _piece(stack, index, path, hidden[number], projection)
                    hidden[number] = piece.up(index >= keep[number])
                    pieces[number][index] = piece
    found, gradient = [], []
    for number, path in enumerate(paths):
        leaf = hidden[number].requires_grad_()
        with torch.enable_grad(), Products():
            totals = target(path.residuals)(stack.head(leaf)).sum(1)
        gradient.append(torch.autograd.grad(totals.sum(), leaf)[0])
        found.append(Found(totals.detach()))
        hidden[number] = leaf.detach()
    hidden.clear()
    for index in reversed(range(len(stack))):
        numbers = [number for number in range(len(paths)) if index in pieces[number]]
        if not numbers:
            continue
        with stack.turn(index), torch.enable_grad(), Products():
            for number in numbers:
                path = paths[number]
                parts = list(pieces[number].pop(index).down(gradient[number]))
                if path.layer is None:
                    gradient[number] = parts.pop(0)
                if path.layer in (None, index):
                    found[number].gradients[index] = parts[0]
                else:
                    gradient[number] = parts[0]
    return found


def _kept_layers(stack: DecoderStack, paths: Sequence[Path], there: Room) -> list[int]:
    """From which layer on the graphs of each path's layers are kept, from what remains beside the stored inputs."""
    layers = len(stack)
    left = there.bytes - sum(path.tokens() * (layers - path.first) * there.state for path in paths)
    found = []
    for path in paths:
        each = path.tokens() * (there.graph - there.state)
        number = min(layers - path.first, max(0, int(left / each)))
        left -= number * each
        found.append(layers - number)
    return found


def _piece(stack: DecoderStack, index: int, path: Path, hidden: Tensor, projection: Projection) -> _Piece:
    residuals = path.residuals
    if path.layer not in (None, index):
        return _Piece([hidden.requires_grad_()], lambda leaves: stack.run_layer(index, leaves[0], residuals))
    alphas = torch.tensor(path.alphas, dtype=stack.dtype, device=hidden.device)
    scale = alphas[:, None].repeat(1, stack.width(projection))
    leaf = scale
    if path.by_position:
        tokens = len(residuals.pack.reads if index == len(stack) - 1 else residuals.pack.tokens)
        leaf = scale.new_zeros(len(scale), tokens, scale.shape[1])
    leaf.requires_grad_()

    def factors(leaf: Tensor) -> tuple[Tensor, Tensor | None]:
        return (scale, leaf) if path.by_position else (leaf, None)

    if path.layer == index:
        entering = stack.entering(residuals, index)

        def here(leaves: list[Tensor]) -> Tensor:
            by, more = factors(leaves[0])
            return stack.leaving_scaled(index, entering, by, projection, more)

        return _Piece([leaf], here)

    def everywhere(leaves: list[Tensor]) -> Tensor:
        by, more = factors(leaves[1])
        handle = stack.mlps[index].edit_rows(projection, partial(edited, scale=by, added=more))
        try:
            return stack.run_layer(index, leaves[0], residuals)
        finally:
            handle.remove()

    return _Piece([hidden.detach().clone().requires_grad_(), leaf], everywhere)
