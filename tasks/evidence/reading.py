"""The files of a finished cell, read once for the report and for the tracker."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors import safe_open

from tasks.pipeline.cell import Cell
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import read_json, read_jsonl


@dataclass(frozen=True)
class Scores:
    """Scores of every neuron, and how well their sum closes per layer.

    `values` [layers, width]; `gap` [layers] is the sum of a layer's scores minus `difference` = F(1) - F(0); `error`
    [layers] is the sum of the absolute gaps of the path's panels, in which nothing cancels; `nodes` [layers] is the
    number of gradient evaluations; `header` is what the score step wrote beside them; `stability` [layers] is the rank
    correlation with the scores of a coarser rule, if that was measured. Where all layers share a path,
    these have one entry; where the scores are no integral, they are NaN.
    """

    values: npt.NDArray[np.float32]
    gap: npt.NDArray[np.float32]
    error: npt.NDArray[np.float32]
    difference: npt.NDArray[np.float32]
    nodes: npt.NDArray[np.int32]
    header: dict[str, Any]
    stability: npt.NDArray[np.float32] | None = None

    @property
    def absolute(self) -> bool:
        """Whether the sign of a score did not count."""
        return self.header.get("ranking") == "absolute"

    @property
    def ranked(self) -> npt.NDArray[np.float32]:
        """What neurons were ordered by, [layers, width]: the scores, or their sizes."""
        return np.abs(self.values) if self.absolute else self.values

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


@dataclass(frozen=True)
class Evidence:
    """What is known about one cell. The frames and dictionaries are those of the cell's files."""

    samples: list[dict[str, Any]]
    scores: Scores
    grid: pd.DataFrame
    pruned: dict[str, Any]
    predictions: pd.DataFrame
    evaluation: dict[str, Any]
    transfer_grid: pd.DataFrame
    transfer: dict[str, Any]

    @property
    def has_transfer(self) -> bool:
        """False when limits.transfer is 0."""
        return bool(self.transfer["n"])


def read_scores(path: Path) -> Scores:
    """Scores from the safetensors file of the score step."""
    with safe_open(str(path), framework="np") as file:
        values, gap, error, difference, nodes = map(file.get_tensor, ("scores", "gap", "error", "difference", "nodes"))
        stability = file.get_tensor("stability") if "stability" in file.keys() else None  # noqa: SIM118
        return Scores(values, gap, error, difference, nodes, json.loads(file.metadata()["header"]), stability)


def read_evidence(cell: Cell) -> Evidence:
    """All files of a cell that `transfer` has finished.

    Raises:
        InputError: one of them is not there.
    """
    paths = (cell.samples, cell.scores, cell.grid, cell.pruned, cell.predictions)
    for path in (*paths, cell.evaluation, cell.transfer_grid, cell.transfer):
        if not path.exists():
            raise InputError(cell.name, f"{path.name} is not there; the cell's earlier steps have not run")
    return Evidence(
        samples=read_jsonl(cell.samples),
        scores=read_scores(cell.scores),
        grid=pd.read_parquet(cell.grid),
        pruned=read_json(cell.pruned),
        predictions=pd.read_parquet(cell.predictions),
        evaluation=read_json(cell.evaluation),
        transfer_grid=pd.read_parquet(cell.transfer_grid),
        transfer=read_json(cell.transfer),
    )
