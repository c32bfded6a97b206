"""Figures: the same bytes every time, well-formed, with the chosen pair in its place."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.evidence.figures import figures, grid_figure, scores_figure
from tasks.evidence.reading import Evidence, read_evidence
from tasks.method.scores import Scores
from tests.cells import write_cell

ALWAYS = {"accuracy", "grid_accuracy", "grid_margin", "scores", "completeness"}


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(write_cell(tmp_path_factory.mktemp("cell")))


@pytest.fixture(scope="module")
def drawn(evidence: Evidence) -> dict[str, str]:
    return figures(evidence)


def test_every_figure_is_there_and_the_same_again(evidence: Evidence, drawn: dict[str, str]) -> None:
    assert set(drawn) == ALWAYS | {"grid_transfer", "transfer_accuracy", "transfer_margin"}
    assert figures(evidence) == drawn


def test_a_user_style_changes_nothing(evidence: Evidence, drawn: dict[str, str]) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert grid_figure(evidence.grid, "margin", "grid_margin", chosen=(2, 0.1)) == drawn["grid_margin"]


def test_no_transfer_no_transfer_figures(tmp_path: Path) -> None:
    assert set(figures(read_evidence(write_cell(tmp_path, transfer=False)))) == ALWAYS


def test_svg_is_well_formed_and_its_identifiers_are_its_own(drawn: dict[str, str]) -> None:
    seen: set[str] = set()
    for name, svg in drawn.items():
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        own = {element.get("id") for element in root.iter() if element.get("id")}
        used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
        assert used <= own, name
        assert not own & seen, name
        seen |= own
        assert not re.search(r"#01020\d", svg), "a stand-in colour was left"
        assert "<style" not in svg
        assert "<metadata" not in svg


def test_grid_shows_its_numbers(evidence: Evidence, drawn: dict[str, str]) -> None:
    texts = re.findall(r">([^<>\s][^<>]*)</text>", drawn["grid_accuracy"])
    pairs = evidence.grid[evidence.grid.layer >= 0]
    assert sum(re.fullmatch(r"\.\d|0|1", text) is not None for text in texts) >= len(pairs)
    assert "unpruned: .6" in texts


def test_pairs_that_were_not_looked_at_stay_blank(evidence: Evidence) -> None:
    grid = evidence.grid
    few = grid[(grid.layer < 0) | (grid.layer % 2 == 0) | (grid.fraction == 0.05)]
    texts = re.findall(r">([^<>\s][^<>]*)</text>", grid_figure(few, "margin", "few", chosen=(2, 0.1)))
    assert "nan" not in texts
    assert set("012345") <= set(texts)  # the layers


def test_the_accuracy_figure_has_the_paired_differences_of_both_measures(drawn: dict[str, str]) -> None:
    for text in ("accuracy (bars: ± one standard error)", "exact", "pruned − base, paired (bars: 95 % interval)"):
        assert text in drawn["accuracy"]


def test_a_grid_without_any_difference_is_drawn(evidence: Evidence) -> None:
    flat = evidence.grid.assign(accuracy=0.5)
    assert "unpruned: .5" in grid_figure(flat, "accuracy", "flat", chosen=(0, 0.05))


@pytest.mark.parametrize("shape", [(1, 3), (2, 192), (80, 4096)])
def test_score_map_of_any_size(shape: tuple[int, int]) -> None:
    layers = np.zeros(shape[0], dtype=np.float32)
    scores = Scores(np.zeros(shape, dtype=np.float32), layers, layers, layers, layers.astype(np.int32), {})
    assert scores_figure(scores, layer=0, pruned=1).count("<image") >= 1


def test_convergence(evidence: Evidence) -> None:
    assert evidence.scores.unconverged == [1]
    assert replace(evidence.scores, header={}).unconverged == []
    nan = replace(evidence.scores, error=np.full(6, np.nan, np.float32))
    assert nan.unconverged == list(range(6))
