"""A search in this process: a strategy on a grid, in the precision that its sample settles. The step `search` does the
same with parts that are computed anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tasks.models.products import Precision
from tasks.pruning.grid import Grid, Pairs, Part, Value, assemble, every_pair, parts_of
from tasks.pruning.precision import Run, settle
from tasks.pruning.strategies import STRATEGIES


@dataclass
class Evaluation:
    """What a strategy asks (`tasks.pruning.strategies.Evaluate`), from the values of parts."""

    run: Run
    sizes: Sequence[int]
    precision: Precision
    width: int

    def __call__(self, pairs: Pairs, pack: int | None = None) -> pd.DataFrame:
        parts = parts_of(pairs, len(self.sizes), self.precision)
        wanted = [part for part in parts if pack in (None, part.pack)]
        rows = sum(self.sizes) if pack is None else self.sizes[pack]
        return assemble(self.run(wanted), rows, self.width)


def search_here(
    grid: Grid, scores: np.ndarray, fractions: Sequence[float], strategy: str, precision: Precision
) -> pd.DataFrame:
    """The pairs that the strategy looks at.

    Args:
        scores: what neurons are ordered by, [layers, width]; the grid's.
        precision: the one that is asked for (`tasks.pruning.precision.settle`).
    """
    values: dict[Part, Value] = {}

    def run(parts: Sequence[Part]) -> Mapping[Part, Value]:
        values.update({part: grid.compute(part) for part in parts if part not in values})
        return {part: values[part] for part in parts}

    sizes, (layers, width) = grid.sizes, scores.shape
    settled = settle(precision, parts_of(every_pair(layers, fractions), len(sizes)), run, width)
    return STRATEGIES[strategy](scores, fractions, Evaluation(run, sizes, settled.precision, width))
