"""Prunes the weights of a loaded model in place, permanently or inside a context."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tasks.models.loading import Loaded
from tasks.models.mlp import Mlp, mlp_of
from tasks.models.structure import weight_of
from tasks.runtime.errors import InputError
from tasks.sparsity import metrics, sparsegpt
from tasks.sparsity.bitmask import pack_mask
from tasks.sparsity.channels import by_permuted_group
from tasks.sparsity.input_statistics import InputStatistics
from tasks.sparsity.layers import Layers
from tasks.sparsity.metrics import NOfM, Target

Method = Literal["magnitude", "wanda", "ria", "sparsegpt"]
METHODS: tuple[Method, ...] = get_args(Method)
NeuronsByLayer = Mapping[int, Sequence[int]]  # neurons of each decoder layer


@dataclass(frozen=True)
class PrunedMatrix:
    """The pruning of a weight matrix.

    Attributes:
        shape: (d_out, d_in).
        removed: the number of removed weights.
        mask: one bit per weight (`tasks.sparsity.bitmask`).
        order: int32 [d_in], of a permuted N:M: the order of the inputs in which the mask is N:M.
    """

    shape: tuple[int, int]
    removed: int
    mask: Tensor
    order: Tensor | None = None

    @property
    def sparsity(self) -> float:
        return self.removed / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class Report:
    """The result of `prune_weights`. `matrices` by the name of the linear layer in the model."""

    method: Method
    target: Target
    matrices: dict[str, PrunedMatrix]
    permuted: bool = False

    @property
    def sparsity(self) -> float:
        """The sparsity of all pruned matrices together."""
        sizes = sum(rows * columns for rows, columns in (matrix.shape for matrix in self.matrices.values()))
        return sum(matrix.removed for matrix in self.matrices.values()) / sizes


def prune_weights(
    loaded: Loaded,
    sequences: Sequence[Sequence[int]],
    method: Method,
    target: Target,
    spared: NeuronsByLayer | None = None,
    *,
    permuted: bool = False,
) -> Report:
    """Prunes all linear layers inside the decoder layers, in place.

    A `DecoderStack` keeps bfloat16 copies of weights; make a new one afterwards.

    Memory above the model: one bit per weight, one matrix and its scores, and, except for magnitude, the residuals and
    statistics of `Layers.walk`.

    Args:
        sequences: token ids of the calibration sequences; magnitude does not use them.
        target: the fraction of the weights to remove, or N:M.
        spared: neurons (rows of gate_proj and up_proj, columns of down_proj; without a gate, rows of the first linear
            layer of the MLP and columns of the second) whose weights are not removed. Other weights are removed
            instead, except for Wanda in gate_proj and up_proj, where each row has its own quota: there, less than
            `target` is removed. Not for SparseGPT and N:M.
        permuted: RIA with N:M: form the groups by RIA's channel permutation. The weights stay in their order, and the
            masks are N:M in the order that the report gives.

    Raises:
        InputError: the target is not possible, or as `Layers` and `Layers.walk`. After an error during the walk (such
            as inputs that are not finite) the layers before it stay pruned; `sparse` restores them.

    Example:
        >>> loaded = load(Path("data/models/smollm2-135m-instruct"))
        >>> prune_weights(loaded, [], "magnitude", 0.5).sparsity
        0.5
    """
    metrics.check_target(target)
    if spared and (method == "sparsegpt" or isinstance(target, NOfM)):
        raise InputError("spared", "neurons can be spared only by magnitude, wanda and ria, and not with N:M")
    if permuted and not (method == "ria" and isinstance(target, NOfM)):
        raise InputError(
            "permuted", "the channel permutation is RIA's, for N:M: use it with ria and a target such as 2:4"
        )
    layers = Layers(loaded.model)
    if isinstance(target, NOfM):
        for linear in layers.all_linears().values():
            metrics.check_groups(weight_of(linear).shape[1], target)
    matrices: dict[str, PrunedMatrix] = {}
    walk: Iterable[tuple[int, InputStatistics | None]] = enumerate([None] * len(layers.linears))
    if method != "magnitude":
        walk = layers.walk(sequences, products=method == "sparsegpt")
    for index, statistics in walk:
        neurons = (spared or {}).get(index, ())
        block = mlp_of(layers.layers[index], type(loaded.model).__name__) if neurons else None
        mlp = block if isinstance(block, Mlp) else None  # `Layers` refuses experts
        for name, linear in layers.linears[index].items():
            matrices[name] = _pruned(linear, name, statistics, method, target, neurons, mlp, permuted=permuted)
    return Report(method, target, matrices, permuted)


@contextmanager
def restored(loaded: Loaded) -> Iterator[None]:
    """A context at whose end the weights of the decoder's linear layers are restored, bit for bit.

    Keeps a copy of these weights on their device: as much memory as the model without its embeddings.
    """
    kept = [(weight_of(linear), weight_of(linear).clone()) for linear in Layers(loaded.model).all_linears().values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, copy in kept:
                weight.copy_(copy)


@contextmanager
def sparse(
    loaded: Loaded,
    sequences: Sequence[Sequence[int]],
    method: Method,
    target: Target,
    spared: NeuronsByLayer | None = None,
    *,
    permuted: bool = False,
) -> Iterator[Report]:
    """`prune_weights` inside a context. Memory: see `restored`."""
    with restored(loaded):
        yield prune_weights(loaded, sequences, method, target, spared, permuted=permuted)


@torch.no_grad()
def _pruned(
    linear: nn.Module,
    name: str,
    statistics: InputStatistics | None,
    method: Method,
    target: Target,
    spared: Sequence[int],
    mlp: Mlp | None,
    *,
    permuted: bool,
) -> PrunedMatrix:
    weight = weight_of(linear)
    order = None
    work = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if method == "sparsegpt" and statistics is not None:
        mask, new = sparsegpt.prune(work, statistics.hessian(name), target)
        weight.copy_(new)
    else:
        if statistics is None:
            score = metrics.magnitude(work)
        else:
            score = (metrics.wanda if method == "wanda" else metrics.ria)(work, statistics.squared_norms(name))
        if permuted and isinstance(target, NOfM):
            mask, order = by_permuted_group(score, target)
            order = order.int().cpu()
        else:
            exempt = _exempt(mlp, linear, work, spared)
            mask = _selected(score.masked_fill(exempt, torch.inf), target, per_row=method == "wanda") & ~exempt
    weight.masked_fill_(mask, 0)
    rows, columns = mask.shape
    return PrunedMatrix((rows, columns), int(mask.sum()), pack_mask(mask), order)


def _exempt(mlp: Mlp | None, linear: nn.Module, weight: Tensor, neurons: Sequence[int]) -> Tensor:
    """Mask of the weights of these neurons, [d_out, d_in]; all False in linear layers outside the MLP."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    index = torch.tensor(list(neurons), dtype=torch.long, device=weight.device)
    for projection, (_, part, parts) in mlp.places.items() if mlp else ():
        if mlp is None or mlp.linear(projection) is not linear:
            continue
        if projection == "down_proj":
            mask[:, index] = True
        else:
            mask[index + part * (len(weight) // parts)] = True
    return mask


def _selected(score: Tensor, target: Target, *, per_row: bool) -> Tensor:
    if isinstance(target, NOfM):
        return metrics.by_group(score, target)
    return metrics.by_row(score, target) if per_row else metrics.by_matrix(score, target)
