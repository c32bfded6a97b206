"""The tables of results: what `dsm show` and `dsm evaluate` print, at every width."""

import io
from dataclasses import replace
from pathlib import Path

import pytest

from flows.results import _measure_lines, as_table, read_result
from flows.verdicts import comparison_table
from tasks.runtime.files import read_json, write_json
from tests.cells import write_cell
from tests.flows.test_cli import call


def test_show(project: Path) -> None:
    made = write_cell(project)
    code, out, _ = call("show")
    assert code == 0
    result = read_result(made)
    assert result is not None
    for measure in (result.accuracy, result.exact_match):
        assert measure.base < measure.pruned
        for text in (f"{measure.base:.3f} → {measure.pruned:.3f}", f"+{measure.difference:.3f} ± {measure.stderr:.3f}"):
            assert text in out
    answers = [":".join(map(str, counts)) for counts in (result.base_answers, result.pruned_answers)]
    assert sum(result.base_answers) == sum(result.pruned_answers) == 60
    for text in (*answers, "on reviews", "layer 2, 10 %", "n = 60", "3 random draws", "0.550 → 0.550", "p < 0.001"):
        assert text in out
    code, out, _ = call("show", "--markdown")
    assert code == 0
    assert "| tiny<br>on reviews<br>layer 2, 10 %<br>n = 60<br>3 random draws |" in out
    assert f"{result.exact_match.base:.3f} → {result.exact_match.pruned:.3f}" in out
    made.evaluation.unlink()
    assert call("show")[:2] == (0, "no cell has a result yet: `dsm run` makes one\n")


def test_show_says_which_results_are_of_an_earlier_version(project: Path) -> None:
    made = write_cell(project)
    evaluation = read_json(made.evaluation)
    del evaluation["comparisons"]["exact_match"]
    write_json(made.evaluation, evaluation)
    code, _, err = call("show")
    again = "dsm run --model tiny --benchmark reviews"
    assert (code, err) == (0, f"tiny-reviews: its result was made by an earlier version; `{again}` makes it again\n")


@pytest.mark.parametrize("width", [160, 80, 60, 50])
def test_the_table_breaks_no_number(project: Path, width: int) -> None:
    from rich.console import Console

    result = read_result(write_cell(project))
    assert result is not None
    wide = replace(result, model="organisation-a-model-with-a-long-name-7b", base_answers=[100, 200, 300, 400, 500])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(as_table([result, wide]))
    out = console.export_text()
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    for measure in (result.accuracy, result.exact_match):
        told = _measure_lines(measure)
        assert len(told) == 5
        for text in told:
            assert sum(text in line for line in lines) >= 2, text
    assert ("acc_norm" in lines[1]) == (width >= 80)
    assert ("100:200:300:400:500 →" in out) == (width >= 160)
    for text in ("n = 60", "on reviews"):
        assert out.count(text) == 2


@pytest.mark.parametrize("width", [160, 60])
@pytest.mark.parametrize("with_base", [True, False])
def test_the_table_of_an_evaluation_breaks_no_number(width: int, with_base: bool) -> None:
    from rich.console import Console

    names = ("accuracy", "exact_match", "acc_norm")
    systems = {
        system: {name: 0.1234 + i / 10 for i, name in enumerate(names)} | {f"{name}_stderr": 0.0289 for name in names}
        for system in ("base", "model")
    }
    compared = {"difference": -0.0471, "stderr": 0.0443, "interval": [-0.1261, 0.0343], "p": 0.00012345}
    found = {"model": "mine", "benchmark": "reviews", "base": "data/models/a-model-with-a-long-name", "n": 300}
    if with_base:
        found |= {"systems": systems, "model_vs_base": dict.fromkeys(names, compared)}
    else:
        found |= {"systems": {"model": systems["model"]}}
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison_table(found))
    out = console.export_text()
    lines = [line.split() for line in out.splitlines()]
    assert max(map(len, out.splitlines())) <= width
    numbers = ["0.123", "±", "0.029", "0.223", "±", "0.029", "0.323", "±", "0.029"]
    assert ["model", *numbers] in lines
    assert (["base", *numbers] in lines) == with_base
    assert (["difference", *["−0.047", "±", "0.044"] * 3] in lines) == with_base
    assert (["p", *["0.00012"] * 3] in lines) == with_base
    assert ("−0.126 to +0.034" in " ".join(out.split())) == with_base
