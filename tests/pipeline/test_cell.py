"""Which cell a step works on."""

import pytest
import yaml

from tasks.pipeline.cell import open_cell
from tasks.pipeline.errors import InputError
from tests.cells import settings


@pytest.fixture
def root(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings()))
    return tmp_path


def test_without_names_the_first_of_the_pipeline(root):
    cell = open_cell(root=root)
    assert (cell.model, cell.benchmark, cell.name) == ("tiny", "reviews", "tiny-reviews")
    assert cell.grid == root / "data" / "cells" / "tiny" / "reviews" / "grid.parquet"


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ({"model": "huge"}, "models: 'huge' is not declared in params.yaml; there are ['tiny']"),
        (
            {"benchmark": "sst"},
            "benchmarks: 'sst' is not declared in params.yaml; there are ['reviews']; "
            "no benchmark 'sst' in the library; did you mean sst5 or sst2?",
        ),
        (
            {"benchmark": "sst2"},
            "benchmarks: 'sst2' is not declared in params.yaml; there are ['reviews'], and the library has it: "
            "`dsm run --benchmark sst2` adds it",
        ),
    ],
)
def test_an_unknown_name(root, names, line):
    with pytest.raises(InputError) as caught:
        open_cell(root=root, **names)
    assert str(caught.value) == line
