"""The tables of docs/scale.md are those that the formulas give."""

import doctest
from pathlib import Path

import bench.scale


def test_the_examples_of_the_formulas_hold() -> None:
    assert doctest.testmod(bench.scale).failed == 0


def test_the_page_has_the_tables_that_the_formulas_give() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    for table in bench.scale.tables():
        assert table in page


def test_the_parameters_are_those_of_the_real_model() -> None:
    assert abs(bench.scale.SHAPES["SmolLM2-135M"].parameters / 134_515_008 - 1) < 1e-3
