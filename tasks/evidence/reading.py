"""The files of a finished cell, read once for the report and for the tracker."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.method.scores import Scores, read_scores
from tasks.pipeline.cell import Cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, read_jsonl


@dataclass(frozen=True)
class Evidence:
    """The contents of one cell's files."""

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
        """False if limits.transfer is 0."""
        return bool(self.transfer["n"])


def read_evidence(cell: Cell) -> Evidence:
    """Reads all files of a cell for which the step `transfer` has finished.

    Raises:
        InputError: a file is missing.
    """
    paths = (cell.samples, cell.scores, cell.grid, cell.pruned, cell.predictions)
    for path in (*paths, cell.evaluation, cell.transfer_grid, cell.transfer):
        if not path.exists():
            raise InputError(cell.name, f"{path.name} does not exist; run the cell's earlier steps first")
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
