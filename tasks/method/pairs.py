"""(layer, fraction) pairs, and the columns of a grid of them."""

from collections.abc import Mapping, Sequence

UNPRUNED = -1  # the layer in the row of the unpruned model
COLUMNS = {"layer": "int64", "fraction": "float64", "neurons": "int64", "accuracy": "float64", "margin": "float64"}

Pairs = Mapping[int, Sequence[float]]  # layer -> ascending fractions


def every_pair(layers: int, fractions: Sequence[float]) -> Pairs:
    """All layers x all fractions."""
    return dict.fromkeys(range(layers), fractions)
