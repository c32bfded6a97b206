"""A search by the layers of another cell: its grid decides, and a change of that grid is detected."""

import copy

import numpy as np
import pandas as pd
import pytest
import yaml

from tasks.method.pairs import COLUMNS, UNPRUNED
from tasks.method.strategies import best_depths
from tasks.pipeline.cell import open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import write_parquet
from tasks.steps.data import store as data
from tasks.steps.model import store as model
from tasks.steps.sample import sample
from tasks.steps.score import score
from tasks.steps.search import search, search_of
from tests.steps.test_steps import write_project


def smaller(best, layers=8):
    """The grid of a model with this number of layers: one is by far the best, and the next one the second best."""
    records = [(UNPRUNED, 0.0, 0, 0.5, 0.0)]
    for layer in range(layers):
        accuracy = {best: 0.9, best + 1: 0.8}.get(layer, 0.4)
        records += [(layer, fraction, 1, accuracy, 0.0) for fraction in (0.1, 0.2)]
    return pd.DataFrame(records, columns=list(COLUMNS)).astype(COLUMNS)


@pytest.fixture
def cells(tmp_path):
    """A function: the cell of the larger model with these fields of `search`, beside a finished cell small-reviews."""
    write_project(tmp_path)
    path = tmp_path / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["models"]["small"] = copy.deepcopy(params["models"]["tiny"])
    params["pipeline"]["models"].append("small")
    params["pipeline"]["cells"]["small-reviews"] = {"model": "small", "benchmark": "reviews"}

    def with_search(name="tiny", **fields):
        params["search"] = {"fractions": [0.1, 0.2, 0.4], **fields}
        path.write_text(yaml.safe_dump(params))
        return open_cell(name, "reviews", tmp_path)

    return with_search


def grid_of_small(cell, best):
    other = open_cell("small", "reviews", cell.root)
    other.directory.mkdir(parents=True, exist_ok=True)
    write_parquet(other.grid, smaller(best))


def test_the_step_tells_the_depths_of_the_other_grid_and_those_of_a_new_one(cells):
    cell = cells(strategy="from_cell", cell="small-reviews")
    with pytest.raises(InputError, match=r"search.cell: small-reviews has no grid yet: run `dsm run --model small"):
        search_of(cell)
    grid_of_small(cell, 3)
    depths = [round(3 / 7, 4), round(4 / 7, 4)]
    with pytest.raises(InputError) as error:
        search_of(cell)
    assert str(error.value) == f"search.depths: is missing: write depths: {depths}"
    cell = cells(strategy="from_cell", cell="small-reviews", depths=depths)
    assert search_of(cell) == cell.settings.search
    grid_of_small(cell, 5)
    with pytest.raises(InputError, match=r"search.depths: is not what the grid of small-reviews gives: .*\[0.7143, "):
        search_of(cell)


def test_the_cell_that_is_named_is_searched_exhaustively(cells):
    cell = cells("small", strategy="from_cell", cell="small-reviews", depths=[0.5])
    assert search_of(cell).strategy == "exhaustive"
    assert cells(strategy="layer_subset").settings.search == search_of(cells(strategy="layer_subset"))


def test_an_unknown_cell_is_refused(cells):
    cell = cells(strategy="from_cell", cell="other-reviews")
    with pytest.raises(InputError, match=r"search.cell: 'other-reviews' is not in pipeline.cells; choose from"):
        search_of(cell)


@pytest.mark.parametrize(("best", "layer"), [(0, 0), (3, 1), (6, 2)])
def test_the_grid_has_the_layer_at_the_best_depth_and_all_its_fractions(cells, best, layer):
    cell = cells()
    for step in (model, data, sample, score):
        step(cell)
    grid_of_small(cell, best)
    cell = cells(strategy="from_cell", cell="small-reviews", depths=best_depths(smaller(best)))
    search(cell)
    found = pd.read_parquet(cell.grid)
    assert found.attrs["strategy"] == "from_cell"
    assert found.layer.tolist() == [UNPRUNED, layer, layer, layer]
    cell = cells()
    search(cell)
    every = pd.read_parquet(cell.grid)
    np.testing.assert_allclose(
        found[["accuracy", "margin"]], every[every.layer.isin([UNPRUNED, layer])][["accuracy", "margin"]], atol=1e-5
    )
