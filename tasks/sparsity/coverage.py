"""Calibration sequences that cover the activations of a pool, instead of a random draw.

A sequence is described by the norms of the inputs of all linear layers, the statistics that Wanda and RIA use. The
choice is the facility location of Nemhauser, Wolsey and Fisher (1978), which has been used to choose training data
(Wei, Iyer and Bilmes 2015): every sequence of the pool should be similar to a chosen one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cdist

from tasks.models.loading import Loaded
from tasks.models.products import Products
from tasks.runtime.errors import InputError
from tasks.sparsity.calibration import Calibration
from tasks.sparsity.input_statistics import InputStatistics
from tasks.sparsity.layers import Layers

POOL = 4  # sequences of the pool for each chosen sequence


def covering(loaded: Loaded, pool: Calibration, count: int) -> Calibration:
    """The `count` sequences of a pool that cover it best, in the order in which they are chosen.

    Raises:
        InputError: the pool has no more than `count` sequences, or as for `input_norms`.
    """
    if not 0 < count < len(pool.sequences):
        raise InputError(
            "calibration", f"{pool.name} has {len(pool.sequences)} sequences to choose {count} from; more are needed"
        )
    chosen = facility_location(input_norms(loaded, pool.sequences), count)
    return Calibration(pool.name, [pool.sequences[index] for index in chosen], pool.length, pool.seed)


@torch.no_grad()
def input_norms(loaded: Loaded, sequences: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """Describes each sequence by the inputs of the unpruned model's linear layers, [sequences, d].

    Each value is the root mean square of one input of one linear layer over the tokens of the sequence, divided by its
    mean over the sequences. So the scale of an input does not matter, only its relative variation, as in Wanda, which
    ranks the products of |weight| and norm within a row. d is the number of inputs of all linear layers; each needs 4
    bytes per sequence.

    Raises:
        InputError: as for `Layers.walk`, or an input is not finite.
    """
    layers = Layers(loaded.model)
    layers.check(sequences)
    linears, body = layers.all_linears(), loaded.model.get_decoder()
    rows = []
    for sequence in sequences:
        statistics = InputStatistics(linears, products=False)
        with statistics.gathering(), Products():
            body(input_ids=torch.tensor([list(sequence)], device=loaded.model.device), use_cache=False)
        layers.check_used(statistics)
        squares = torch.cat([statistics.squared_norms(name) for name in linears])
        rows.append((squares / len(sequence)).sqrt().float().cpu().numpy())
    norms = np.stack(rows)
    if not np.isfinite(norms).all():
        raise InputError("calibration", "gives inputs of linear layers that are not finite")
    mean = norms.mean(0)
    return np.asarray(np.divide(norms, mean, out=np.zeros_like(norms), where=mean > 0))


def facility_location(features: npt.NDArray[np.floating], count: int) -> list[int]:
    """The indices of `count` rows, chosen greedily to maximise f(S) = sum over rows i of the maximum over j in S of
    s(i, j), where s(i, j) is the largest distance of two rows minus the Euclidean distance of i and j.

    The first choice has the smallest sum of distances to all rows. f is monotone and submodular, so the greedy choice
    reaches at least 1 - 1/e of the largest possible f. If gains are equal, the lowest index is chosen.

    Args:
        features: [n, d].
        count: from 1 to n.
    """
    if not 1 <= count <= len(features):
        raise ValueError(f"{count} of {len(features)} rows cannot be chosen")
    distance = cdist(features, features)
    similarity = distance.max() - distance
    covered = np.zeros(len(features))
    chosen: list[int] = []
    for _ in range(count):
        gains = np.maximum(similarity, covered).sum(1) - covered.sum()  # similarity is symmetric
        gains[chosen] = -np.inf
        chosen.append(int(gains.argmax()))
        covered = np.maximum(covered, similarity[chosen[-1]])
    return chosen
