"""Which cell a step works on."""

import pytest
import yaml

from tasks.pipeline.cell import open_cell
from tasks.runtime.errors import InputError
from tests.cells import pipeline, settings


@pytest.fixture
def root(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings()))
    return tmp_path


def test_without_names_the_first_of_the_pipeline(root):
    cell = open_cell(root=root)
    assert (cell.model, cell.benchmark, cell.name) == ("tiny", "reviews", "tiny-reviews")
    assert cell.grid == root / "data" / "cells" / "tiny" / "reviews" / "grid.parquet"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ({}, "mine-quiz"),
        ({"model": "tiny"}, "tiny-others"),
        ({"benchmark": "others"}, "tiny-others"),
        ({"benchmark": "quiz"}, "mine-quiz"),
        ({"model": "third"}, "third-quiz"),
        ({"benchmark": "reviews"}, "mine-reviews"),
    ],
)
def test_the_name_that_is_left_out_is_that_of_a_cell(tmp_path, names, found):
    params = settings()
    params["pipeline"] = pipeline(("mine", "quiz"), ("tiny", "others"), ("tiny", "reviews"))
    del params["pipeline"]["cells"]["tiny-reviews"]
    params["models"] |= dict.fromkeys(("mine", "third"), params["models"]["tiny"])
    params["benchmarks"] |= dict.fromkeys(("quiz", "others"), params["benchmarks"]["reviews"])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert open_cell(root=tmp_path, **names).name == found


def test_no_name_and_no_cell(tmp_path):
    params = settings() | {"pipeline": pipeline()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match=r"^pipeline\.cells: is empty; name a model and a benchmark$"):
        open_cell(root=tmp_path)
    assert open_cell("tiny", root=tmp_path).name == "tiny-reviews"  # the step `model` needs only the model


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ({"model": "huge"}, "models: 'huge' is not declared in params.yaml; choose from ['tiny']"),
        (
            {"benchmark": "sst"},
            "benchmarks: 'sst' is not declared in params.yaml; choose from ['reviews']; "
            "no benchmark 'sst' in the library; did you mean sst5 or sst2?",
        ),
        (
            {"benchmark": "sst2"},
            "benchmarks: 'sst2' is not declared in params.yaml; choose from ['reviews'], or add it from the library "
            "with `dsm run --benchmark sst2`",
        ),
        (
            {"benchmark": "nq_open"},
            "benchmarks: 'nq_open' is not declared in params.yaml; choose from ['reviews'], or add it from the library "
            "with `dsm study generation --on nq_open`",
        ),
    ],
)
def test_an_unknown_name(root, names, line):
    with pytest.raises(InputError) as caught:
        open_cell(root=root, **names)
    assert str(caught.value) == line
