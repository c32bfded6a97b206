"""Sweeps over the layers: many runs pass through the model together, one layer after the other.

A run that edits layer l needs only the layers above l. A sweep takes all runs through one layer before the next one,
and for gradients back down. So the weights of a layer are loaded once per sweep (twice for gradients), whether they
are on the device, on the host or on the disk: `DecoderStack.turn` loads them. The results are bit for bit those of
separate runs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tasks.models.memory import Room, room
from tasks.models.products import Differences, Kept, Precision, Products
from tasks.models.projections import Projection
from tasks.models.stack import DecoderStack, Residuals

# Maps the logits of a pack, [C, R, vocabulary], to the function F at each read position, [C, R].
Target = Callable[[Tensor], Tensor]


# -- runs without some neurons ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Without:
    """Runs on one pack, each with one set of rows of a projection of one layer set to zero.

    Attributes:
        residuals: the unedited pass over the pack.
        layer: the edited layer. The number of layers stands for one run of the unedited model; `sets` is then ignored.
        sets: the row indices of each run.
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
    """Logits at the read positions of one pack with rows of one layer set to zero: `all_logits_without` for one pack.

    Yields:
        [c, R, vocabulary] for the next c sets.
    """
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
    """Logits at the read positions of all runs, from one sweep. Unfinished unedited passes advance with them.

    A mixture of experts is computed in float32: rounded products would send tokens to other experts.

    Yields:
        The index of a run, and [c, R, vocabulary] for the next c of its sets. c is what memory allows.
    """
    packs = _by_pack([run.residuals for run in runs])
    precision = precision if stack.each is None else "float32"
    hidden: dict[int, Tensor] = {}
    for index in range(_first(runs), len(stack)):
        with stack.turn(index):
            for residuals, numbers in packs:
                below = [number for number in numbers if runs[number].layer < index]
                here = [number for number in numbers if runs[number].layer == index]
                kept = Kept(stack.rounded) if below and precision == "bfloat16" else None
                if here or kept:
                    entering = stack.entering(residuals, index, kept)
                # In bfloat16, runs above the edited layer also need what the unedited pass multiplies there.
                if precision == "bfloat16" or any(runs[number].layer > index for number in numbers):
                    stack.advance(residuals, index)
                for number in below:
                    with Products() if kept is None else Differences(kept):
                        hidden[number] = _run_layer(stack, index, hidden[number], residuals, there)
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
    """Completes unedited passes, with one sweep."""
    for index in range(len(stack)):
        if any(len(residuals.inputs) == index + 1 for residuals in passes):
            with stack.turn(index):
                for residuals in passes:
                    stack.advance(residuals, index)


def _by_pack(all_residuals: Sequence[Residuals]) -> list[tuple[Residuals, list[int]]]:
    """Each unedited pass once, with the indices of the runs that start from it."""
    packs: dict[int, tuple[Residuals, list[int]]] = {}
    for number, residuals in enumerate(all_residuals):
        packs.setdefault(id(residuals), (residuals, []))[1].append(number)
    return list(packs.values())


def _first(runs: Sequence[Without]) -> int:
    """The first layer that any run or unfinished pass needs."""
    return min(min(run.layer, len(run.residuals.inputs) - 1) for run in runs)


def _run_layer(stack: DecoderStack, index: int, hidden: Tensor, residuals: Residuals, there: Room) -> Tensor:
    size = max(1, there.forward_tokens // len(residuals.pack.tokens))
    parts = [stack.run_layer(index, part, residuals) for part in torch.split(hidden, size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


# -- gradients along paths --------------------------------------------------------------------------------------------


@dataclass
class Path:
    """Points on the integration path of one pack: the rows of a projection are scaled by each of `alphas`.

    Attributes:
        residuals: the unedited pass over the pack.
        layer: the layer whose rows are scaled; None scales the rows of all layers.
        by_position: take gradients with respect to the output of the rows at each position, instead of the scale.
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
class PathResult:
    """The result of one path.

    Attributes:
        totals: F at each point, summed over the read positions, [alphas].
        gradients: by layer, [alphas, width], or [alphas, tokens, width] with `by_position`.
    """

    totals: Tensor
    gradients: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class _Piece:
    """One layer of one path: its inputs and, if its graph is kept, its output."""

    leaves: list[Tensor]
    compute: Callable[[list[Tensor]], Tensor]
    out: Tensor | None = None

    def up(self, keep: bool) -> Tensor:
        out = self.compute(self.leaves)
        self.out = out if keep else None
        return out.detach()

    def down(self, gradient: Tensor) -> Sequence[Tensor]:
        out = self.compute(self.leaves) if self.out is None else self.out
        self.out = None
        return torch.autograd.grad(out, self.leaves, gradient)


def gradients(
    stack: DecoderStack,
    paths: Sequence[Path],
    target: Callable[[Residuals], Target],
    there: Room,
    projection: Projection = "gate_proj",
) -> list[PathResult]:
    """F and its gradient at all points of all paths, with one sweep up and one sweep down.

    The input of each layer is stored. Where memory allows, the graph of the layer is kept too, starting from the last
    layer. Other layers are computed again on the way down, which gives the same bits.

    Args:
        target: gives the function F of a pack whose unedited pass is finished.
        there: the memory that may be used.
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
    results, gradient = [], []
    for number, path in enumerate(paths):
        leaf = hidden[number].requires_grad_()
        with torch.enable_grad(), Products():
            totals = target(path.residuals)(stack.head(leaf)).sum(1)
        gradient.append(torch.autograd.grad(totals.sum(), leaf)[0])
        results.append(PathResult(totals.detach()))
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
                    results[number].gradients[index] = parts[0]
                else:
                    gradient[number] = parts[0]
    return results


def _kept_layers(stack: DecoderStack, paths: Sequence[Path], there: Room) -> list[int]:
    """For each path, the first layer whose graph is kept, given the memory that the stored inputs leave."""
    layers = len(stack)
    left = there.bytes - sum(path.tokens() * (layers - path.first) * there.state for path in paths)
    starts = []
    for path in paths:
        each = path.tokens() * (there.graph - there.state)
        number = min(layers - path.first, max(0, int(left / each)))
        left -= number * each
        starts.append(layers - number)
    return starts


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
        handle = stack.mlps[index].edit_rows(projection, by, more)
        try:
            return stack.run_layer(index, leaves[0], residuals)
        finally:
            handle.remove()

    return _Piece([hidden.detach().clone().requires_grad_(), leaf], everywhere)
