"""report.html: agrees with the cell's files, needs no other file, and is the same every time."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from tasks.evidence.cell_report import render
from tasks.evidence.figures import figures
from tasks.evidence.reading import read_evidence
from tasks.evidence.verdict import interval, measured, p_value, percent, signed, verdict
from tasks.method.recipe import choose
from tasks.pipeline.cell import Cell, open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, write_json, write_parquet
from tasks.steps.report import report
from tests.cells import write_cell

HOSTILE = "{i} <script>alert(1)</script><img src=x onerror=alert(2)> &amp; </style> {{ cell }} $x_1^2$ \u2028 “é”"


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return write_cell(tmp_path)


class Tags(HTMLParser):
    """Collects tags and what they would load; fails if an element is closed that is not open."""

    VOID = frozenset({"meta", "link", "br", "img", "image", "use", "path", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return tags


def plain(text: str) -> str:
    """What a reader sees, with white space collapsed."""
    text = re.sub(r"(?s)<(style|svg)\b.*?</\1>|<[^>]+>", " ", text)
    return " ".join(html.unescape(text).split())


def test_step_writes_the_verdict(cell: Cell) -> None:
    report(cell)
    shown = plain(cell.report.read_text(encoding="utf-8"))
    told = verdict(read_json(cell.pruned), read_json(cell.evaluation))
    for sentence in (told.headline, told.sentence, told.control):
        assert sentence in shown
    assert shown.index(told.sentence) < shown.index("Results")


def test_same_bytes_wherever_and_whenever(cell: Cell, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = write_cell(tmp_path_factory.mktemp("elsewhere"))
    assert render(cell) == render(elsewhere)
    assert str(cell.root) not in render(cell)


def test_needs_nothing_but_itself(cell: Cell) -> None:
    text = render(cell)
    tags = parsed(text)
    assert [link for link in tags.loads if not link.startswith(("#", "data:"))] == []
    assert not {"script", "iframe", "object", "embed", "img"} & set(tags.tags)
    assert not re.search(r"@import|url\((?!#|data:)", text)
    assert len(tags.ids) == len(set(tags.ids))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    text = render(write_cell(tmp_path, text=HOSTILE))
    assert not {"script", "img"} & set(parsed(text).tags)
    assert "3 <script>alert(1)</script><img src=x onerror=alert(2)> &amp; </style> {{ cell }} $x_1^2$" in plain(text)


def test_long_text_is_folded(tmp_path: Path) -> None:
    text = render(write_cell(tmp_path, text="{i} " + "words " * 500))
    assert text.count('<details class="text-fold">') >= 10


def test_no_transfer_is_said(tmp_path: Path) -> None:
    text = render(write_cell(tmp_path, transfer=False))
    assert "The transfer check was skipped (n = 0" in plain(text)
    assert "<dt>Regret</dt>" not in text
    parsed(text)


def test_a_constant_surface_has_no_rank_correlation(cell: Cell) -> None:
    write_json(cell.transfer, read_json(cell.transfer) | {"spearman": None, "spearman_p": None})
    assert "one side is constant" in plain(render(cell))


def test_options_that_differ_by_row(tmp_path: Path) -> None:
    shown = plain(render(write_cell(tmp_path, per_row=True)))
    assert "option 3" in shown
    assert re.search(r"right: (yes|no|maybe) \d", shown)  # the ten examples have their own options


def test_flips_are_those_of_the_predictions(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, shift=-1.0)
    comparison = read_json(cell.evaluation)["comparisons"]["pruned_vs_base"]
    text = render(cell)
    shown = plain(text)
    assert f"Wrong before, right after pruning ({comparison['only_first']})" in shown
    assert f"Right before, wrong after pruning ({comparison['only_second']})" in shown
    assert comparison["only_second"] > 0
    assert text.count('class="shift"') == comparison["only_first"] + comparison["only_second"]


def test_only_the_largest_changes_of_many(tmp_path: Path) -> None:
    shown = plain(render(write_cell(tmp_path, shift=5.0, n=600)))
    assert re.search(r"The 100 with the largest change of \d{3}; all are in predictions.parquet", shown)


def test_the_template_is_cut_from_the_rows(cell: Cell) -> None:
    text = render(cell)
    assert text.count("Is this positive or negative?") == 1
    assert "a film about film 1003" in text


def test_limits_and_provenance_are_said(cell: Cell) -> None:
    shown = plain(render(cell))
    recipe = read_json(cell.pruned)
    for fact in (
        "it reads the right answers of the same 10 examples",
        "10 examples allow only 11 accuracy levels",
        "keeps its shapes",
        "1 of 6 layers did not converge: 1.",
        recipe["base_sha256"],
        "Apache-2.0",
        "dsm run --model tiny --benchmark reviews",
        "dvc repro",
        "dsm export --model tiny --benchmark reviews --out exports/tiny-reviews",
    ):
        assert fact in shown, fact


def test_scores_of_another_kind_are_called_what_they_are(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = figures(read_evidence(cell))
    monkeypatch.setattr("tasks.evidence.cell_report.figures", lambda _: drawn)  # they take most of the time

    def shown(tensors: dict[str, np.ndarray], **header: Any) -> str:
        metadata = {"header": json.dumps({"n": 10, "projection": "gate_proj", "ranking": "signed"} | header)}
        save_file(tensors, cell.scores, metadata=metadata)
        return plain(render(cell))

    layered = load_file(cell.scores)
    nothing = np.full_like(layered["gap"], np.nan)
    text = shown(layered | dict.fromkeys(("gap", "error", "difference"), nothing), method="activation")
    assert "score is the mean absolute value of act(gate) × up; averaged over the 10 examples" in text
    assert "there is no sum that they must add up to" in text

    whole = layered | {name: layered[name][:1] for name in ("gap", "error", "difference", "nodes")}
    named = {"method": "integrated_gradients", "path": "all_layers", "projection": "up_proj", "ranking": "absolute"}
    text = shown(whole, target="option_margin", tolerance=1e-9, **named)
    assert "two largest logits of the options’ first tokens along its up weights" in text
    assert "with all neurons of all layers" in text
    assert "ordered by its absolute value" in text
    assert "The scores of all layers together must add up" in text
    assert "It did not converge." in text

    settled = layered | {"stability": np.array([0.5, 0.5, 1, 1, 1, 1], dtype=np.float32)}
    text = shown(settled, method="integrated_gradients", path="layer", tolerance=0.01, stability=0.99)
    assert "2 of 6 layers did not converge: 0, 1." in text
    for path, method, words in [
        (
            "layer",
            "gradient_x_activation",
            "the gradient of the largest next-token logit with respect to a factor on its gate weights",
        ),
        ("layer", "relu_gradient", "the mean positive part of the gradient"),
        (
            "layer",
            "saliency",
            "the size of the gradient of the largest next-token logit with respect to the output of its gate weights",
        ),
        ("layer", "shapley", "its estimated Shapley value: what the largest next-token logit gains"),
        ("layer", "deeplift", "with respect to a common factor on act(gate) × up"),
        ("single", "integrated_gradients", "loses when its gate weights alone are set to zero"),
    ]:
        assert words in shown(layered, path=path, method=method, target="max_logit")


def test_a_cheaper_search_leaves_blanks_in_the_map_and_no_decimals_in_layers(cell: Cell) -> None:
    grid = pd.read_parquet(cell.grid)
    write_parquet(cell.grid, grid[(grid.layer < 3) | (grid.fraction == 0.05)])
    text = render(cell)
    assert ">nan<" not in text
    assert "Blank: pairs that the search ( exhaustive ) did not try." in plain(text)
    assert not re.search(r"layer \d+\.\d", plain(text))
    assert "Cheaper searches" not in plain(text)


def test_both_measures_have_a_paired_difference_with_an_interval_and_a_p(cell: Cell) -> None:
    evaluation = read_json(cell.evaluation)
    shown = plain(render(cell))
    for name, measure in measured(evaluation).items():
        first = measure["pruned_vs_base"]
        assert shown.count(interval(first)) >= 3, name  # the sentence, the tile, the table
        assert f"{signed(first['difference'])} {name.replace('_', ' ')}: 95 % interval {interval(first)}, " in shown
        assert f"{interval(first)}, exact McNemar {p_value(first['p'])}" in shown
        for seed, comparison in measure["pruned_vs_random"].items():
            assert f"random, seed {seed}" in shown
            assert f"{comparison['only_first']} : {comparison['only_second']}" in shown
    base = evaluation["systems"]["base"]
    assert base["exact_match"] < base["accuracy"]
    assert f"{base['exact_match']:.3f} exact match ± {base['exact_match_stderr']:.3f}" in shown
    assert f"{base['acc_norm']:.3f} ± {base['acc_norm_stderr']:.3f}" in shown
    assert "one standard error of that system alone, not of a difference" in shown


def test_the_list_of_contents_names_every_section_that_is_there(tmp_path: Path) -> None:
    text = render(write_cell(tmp_path))
    listed = re.findall(r'<li><a href="#(\w+)">', text)
    assert listed == re.findall(r'<section id="(\w+)">', text)
    assert "strategies" in listed
    grid = pd.read_parquet(tmp_path / "data/cells/tiny/reviews/grid.parquet")
    write_parquet(tmp_path / "data/cells/tiny/reviews/grid.parquet", grid[(grid.layer < 3) | (grid.fraction == 0.05)])
    text = render(open_cell("tiny", "reviews", tmp_path))
    listed = re.findall(r'<li><a href="#(\w+)">', text)
    assert listed == re.findall(r'<section id="(\w+)">', text)
    assert "strategies" not in listed


def test_a_missing_file_is_named(cell: Cell) -> None:
    cell.transfer.unlink()
    with pytest.raises(InputError, match=r"tiny-reviews: transfer.json does not exist"):
        report(cell)
    assert not cell.report.exists()


def test_the_report_says_what_cheaper_searches_would_have_chosen(tmp_path):
    text = render(write_cell(tmp_path))
    for name in ("exhaustive", "coarse_to_fine", "layer_subset"):
        assert f"<code>{name}</code>" in text
    assert not re.search(r"layer \d+\.", plain(text))
    assert "Regret, test rows" in text
    assert "99.85 % of 3840 predictions" in text


def test_the_report_compares_the_layers_of_another_cell(tmp_path):
    """Depths of layers 1 and 4: of six layers the first of them, at its five fractions."""
    cell = write_cell(tmp_path)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["search"] |= {"cell": "small-reviews", "depths": [0.2, 0.8]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    grid, fractions = pd.read_parquet(cell.grid), len(params["search"]["fractions"])
    chosen = choose(grid[grid.layer.isin([-1, 1])])[0]
    regret = choose(grid)[0]["accuracy"] - chosen["accuracy"]
    shown = plain(render(open_cell("tiny", "reviews", tmp_path)))
    row = f"from_cell, small-reviews {fractions} layer 1, {percent(chosen['fraction'])} {signed(regret)}"
    assert row in shown
