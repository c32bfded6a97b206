"""The tables of docs/scale.md are the output of the formulas."""

import doctest
import json
from pathlib import Path

import bench.gpu
import bench.scale


def test_the_examples_of_the_formulas_hold() -> None:
    assert doctest.testmod(bench.scale).failed == 0


def test_the_page_has_the_tables_that_the_formulas_give() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    for table in bench.scale.tables():
        assert table in page


def test_the_parameters_are_those_of_the_real_model() -> None:
    assert abs(bench.scale.SHAPES["SmolLM2-135M"].parameters / 134_515_008 - 1) < 1e-3


def test_the_bench_of_a_gpu_runs_on_a_small_model(tmp_path: Path) -> None:
    found = bench.gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() == found.keys()
    assert found["scores, largest gap"] < 1
    for name in ("scores of all layers, s a sample", "evaluation, s a row", "gradient of all weights, one prompt, s"):
        assert found[name] > 0
