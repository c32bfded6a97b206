"""`dsm sparsify`: the line in params.yaml, and a weight-pruned tiny model through Prefect, DVC and `dsm apply`."""

from pathlib import Path

import pytest
import torch
import yaml

from flows.sparsify_flow import list_sparse
from tasks.models.loading import load
from tests.cells import write_cell
from tests.faults.kills import DSM, start
from tests.flows.test_cli import call

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


def test_a_model_is_added_once_and_nothing_else_changes(project: Path) -> None:
    write_cell(project)
    path = project / "params.yaml"
    before = yaml.safe_load(path.read_text())
    (project / "texts").mkdir()
    (project / "texts" / "c4.jsonl").write_text('{"text": "a"}\n')
    key, told = list_sparse(project, "wanda", "2:4", None, "texts/c4.jsonl")
    assert key == "wanda-2of4-tiny-texts-c4"
    assert told is not None
    entry = {"method": "wanda", "model": "tiny", "n_of_m": [2, 4], "calibration": "texts/c4.jsonl"}
    assert yaml.safe_load(path.read_text()) == before | {"sparse": {key: entry}}
    assert list_sparse(project, "wanda", "2:4", None, "texts/c4.jsonl") == (key, None)
    key, _ = list_sparse(project, "ria", "2:4", None, "texts/c4.jsonl", permuted=True)
    assert key == "ria-2of4-permuted-tiny-texts-c4"
    assert yaml.safe_load(path.read_text())["sparse"][key] == entry | {"method": "ria", "permuted": True}
    key, _ = list_sparse(project, "ria", "0.5", "tiny", None)
    assert yaml.safe_load(path.read_text())["sparse"][key] == {
        "method": "ria", "model": "tiny", "sparsity": 0.5, "calibration": "data/benchmarks/reviews"
    }  # fmt: skip


def test_two_files_of_one_name_are_two_models(project: Path) -> None:
    write_cell(project)
    files = ["c4/test.jsonl", "old/c4/test.jsonl", "new/c4/test.jsonl", "c4/test.txt", "tiny/reviews.txt"]
    keys = []
    for file in files:
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        (project / file).write_text('{"text": "a"}\n')
        key, told = list_sparse(project, "wanda", "0.5", None, file)
        assert told is not None
        keys.append(key)
    sparse = yaml.safe_load((project / "params.yaml").read_text())["sparse"]
    assert {key: entry["calibration"] for key, entry in sparse.items()} == dict(zip(keys, files, strict=True))
    assert keys[:2] == ["wanda-0_5-tiny-c4-test", "wanda-0_5-tiny-old-c4-test"]
    assert [list_sparse(project, "wanda", "0.5", None, file) for file in files] == [(key, None) for key in keys]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["magic"], "method: must be one of magnitude, wanda, ria, sparsegpt, not 'magic'"),
        (["wanda", "--target", "half"], "target: 'half' is neither a fraction such as 0.5 nor N:M such as 2:4"),
        (["wanda", "--target", "1.5"], "sparse.wanda-1_5-tiny-reviews.sparsity: Input should be less than 1, not 1.5"),
        (["wanda", "--target", "4:2"], "sparse.wanda-4of2-tiny-reviews: n_of_m: [n, m] needs 0 < n < m"),
        (["ria", "--permuted"], "sparse.ria-0_5-permuted-tiny-reviews: permuted: only ria with n_of_m has a channel"),
        (["wanda", "--calibration", "c4"], "calibration: 'c4' is neither a file nor one of ['reviews']"),
        (["wanda", "--model", "other"], "models: 'other' is not declared in params.yaml; choose from ['tiny']"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(project: Path, arguments: list[str], line: str) -> None:
    write_cell(project)
    before = (project / "params.yaml").read_bytes()
    code, out, err = call("sparsify", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: {line}")
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_home")
def test_a_model_is_made_once_and_its_weights_written(finished_root: Path) -> None:
    root = finished_root
    (root / "texts.txt").write_text("".join(f"a film about film {i} that is good or bad\n" for i in range(200)))
    command = (*DSM, "sparsify", "wanda", "--calibration", "texts.txt")
    for number, done in enumerate(("ran", "cached")):
        said = f"{number}.txt"
        assert start(root, *command, said=said).wait(300) == 0, (root / said).read_text()
        lines = [line.split()[:2] for line in (root / said).read_text().splitlines()]
        assert [line for line in lines if line[:1] == ["sparsify"]] == [["sparsify", done]]
    recipe = "data/sparse/wanda-0_5-tiny-texts/sparse.json"
    command = (*DSM, "apply", recipe, "--model", "data/models/tiny", "--out", "out")
    assert start(root, *command, said="apply.txt").wait(100) == 0, (root / "apply.txt").read_text()
    for name, weight in load(root / "out").model.named_parameters():
        if "proj" in name:
            assert torch.equal((weight == 0).sum(1), torch.full((len(weight),), weight.shape[1] // 2)), name


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_home")
def test_a_benchmarks_prompts_are_a_calibration_set(finished_root: Path) -> None:
    root = finished_root
    assert start(root, *DSM, "sparsify", "ria", "--target", "2:4", said="ria.txt").wait(300) == 0
    path = root / "data" / "sparse" / "ria-2of4-tiny-reviews" / "sparse.json"
    assert yaml.safe_load(path.read_text())["calibration"]["name"] == "reviews"
