"""The scores of all neurons, as an object and as the file of the step `score`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from tasks.models.projections import Projection


@dataclass(frozen=True)
class Scores:
    """Scores of every neuron, and how well their sum closes per layer.

    Attributes:
        values: [layers, width], signed.
        gap: [layers], the sum of a layer's scores minus `difference`.
        error: [layers], the sum of the absolute gaps of the path's panels, in which nothing cancels.
        difference: [layers], F(1) - F(0).
        nodes: [layers], gradient evaluations.
        header: how they were computed: the settings, and hashes of the inputs where they come from files.
        stability: [layers], rank correlation with the scores of a coarser rule, if that was measured.

    Where all layers share a path, gap, error, difference, nodes and stability have one entry. Where the scores are not
    an integral, they are NaN.
    """

    values: npt.NDArray[np.float32]
    gap: npt.NDArray[np.float32]
    error: npt.NDArray[np.float32]
    difference: npt.NDArray[np.float32]
    nodes: npt.NDArray[np.int32]
    header: dict[str, Any]
    stability: npt.NDArray[np.float32] | None = None

    @property
    def projection(self) -> Projection:
        """The projection whose rows the neurons are."""
        projection: Projection = self.header["projection"]
        return projection

    @property
    def absolute(self) -> bool:
        """Whether the sign of a score does not count."""
        return self.header.get("ranking") == "absolute"

    @property
    def ranked(self) -> npt.NDArray[np.float32]:
        """The values that order the neurons, highest first, [layers, width]: the scores, or their absolute values.

        No other code reads `attribution.ranking`: search, prune and transfer all order neurons by these values.

        Neurons of experts to which no token of the adaptation set is routed come last: they get a value below all
        others of their layer.
        """
        values = np.abs(self.values) if self.absolute else self.values
        if experts := self.header.get("experts"):
            lowest = np.nextafter(values.min(axis=1), np.float32(-np.inf))
            values = values.copy()
            for layer, none in enumerate(experts["unreached"]):
                values[layer].reshape(-1, experts["each"])[none] = lowest[layer]
        return values

    @property
    def by_layer(self) -> bool:
        """Whether every layer has a gap of its own."""
        return len(self.gap) == len(self.values) and not np.isnan(self.gap).any()

    @property
    def relative_error(self) -> npt.NDArray[np.float64]:
        """error / max(|F(1) - F(0)|, 1) [layers]: what attribution.tolerance bounds."""
        return self.error.astype(np.float64) / np.maximum(np.abs(self.difference, dtype=np.float64), 1)

    @property
    def unconverged(self) -> list[int]:
        """Layers whose error is over the tolerance or whose ranking has not settled; none without a tolerance."""
        tolerance = self.header.get("tolerance")
        if tolerance is None:
            return []
        bad = ~(self.relative_error <= tolerance)
        if self.stability is not None:
            bad |= self.stability < np.float32(self.header.get("stability", 0))
        return [int(i) for i in np.flatnonzero(bad)]

    def to_bytes(self) -> bytes:
        """The safetensors file, the same bytes for the same scores."""
        tensors = {name: getattr(self, name) for name in ("gap", "error", "difference", "nodes", "stability")}
        present = {name: np.ascontiguousarray(value) for name, value in tensors.items() if value is not None}
        # One key of metadata: the format does not fix the order of several.
        metadata = {"header": json.dumps(self.header, sort_keys=True)}
        return save({"scores": np.ascontiguousarray(self.values), **present}, metadata=metadata)


def as_scores(values: npt.NDArray[np.float32], projection: Projection, n: int) -> Scores:
    """Any values, [layers, width], as scores, such as a random order for a control.

    Args:
        n: how many examples the search will see.
    """
    nothing = np.full(1, np.nan, dtype=np.float32)
    header = {"projection": projection, "ranking": "signed", "n": n}
    return Scores(values, nothing, nothing, nothing, np.zeros(1, dtype=np.int32), header, nothing)


def read_scores(path: Path) -> Scores:
    """Scores from the safetensors file of the step `score`."""
    with safe_open(str(path), framework="np") as file:
        values, gap, error, difference, nodes = map(file.get_tensor, ("scores", "gap", "error", "difference", "nodes"))
        stability = file.get_tensor("stability") if "stability" in file.keys() else None  # noqa: SIM118
        return Scores(values, gap, error, difference, nodes, json.loads(file.metadata()["header"]), stability)
