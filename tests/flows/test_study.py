"""`dsm study`: the line in params.yaml, and a whole study of a tiny cell through Prefect and DVC."""

from pathlib import Path

import pytest
import yaml

from flows.stages import STEPS
from flows.study_flows import list_study
from tasks.pipeline.cell import open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json
from tests.cells import write_cell
from tests.faults.fault_project import real_project
from tests.faults.kills import DSM, forget, start
from tests.flows.test_cli import call

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


def test_a_study_is_added_once_and_nothing_else_changes(project: Path) -> None:
    write_cell(project)
    path = project / "params.yaml"
    path.write_text("# kept\n" + path.read_text())
    before = yaml.safe_load(path.read_text())
    told = list_study(project, "seeds", "tiny", "reviews")
    entry = {"study": "seeds", "model": "tiny", "benchmark": "reviews"}
    assert told is not None
    assert told.startswith("studies.seeds-tiny-reviews: {")
    assert path.read_text().startswith("# kept\n")
    assert yaml.safe_load(path.read_text()) == before | {"studies": {"seeds-tiny-reviews": entry}}
    assert list_study(project, "seeds", "tiny", "reviews") is None
    list_study(project, "layers", "tiny", "reviews")
    assert list(yaml.safe_load(path.read_text())["studies"]) == ["seeds-tiny-reviews", "layers-tiny-reviews"]


def test_a_line_that_would_be_wrong_is_not_written(project: Path) -> None:
    write_cell(project)
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(InputError, match="needs some besides reviews"):
        list_study(project, "cross_benchmark", "tiny", "reviews")
    code, out, err = call("study", "magic")
    assert (code, out) == (2, "")
    assert err.startswith("error: study: must be one of compare, fractions, ")
    assert (project / "params.yaml").read_bytes() == before


def test_a_benchmark_with_free_answers_is_no_cell(project: Path) -> None:
    write_cell(project)
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    reviews = params["benchmarks"]["reviews"]
    free = {"train": reviews["train"] | {"gold": "any"}, "options": "{{ [text] }}", "prompt": "{{ text }}"}
    params["benchmarks"]["free"] = {key: reviews[key] for key in ("test", "limits")} | free
    path.write_text(yaml.safe_dump(params))
    before = path.read_bytes()
    code, out, err = call("run", "--model", "tiny", "--benchmark", "free")
    assert (code, out) == (2, "")
    assert err.startswith("error: params.yaml: pipeline.cells.tiny-free: free has free answers, not options to choose")
    assert err.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["domains", "multilingual"])
def test_a_study_of_an_earlier_name_is_refused_with_the_name_that_it_has_now(project: Path, name: str) -> None:
    write_cell(project)
    before = (project / "params.yaml").read_bytes()
    told = f"error: study: {name!r} is now 'cross_benchmark'\n"
    assert call("study", name, "--on", "reviews") == (2, "", told)
    assert (project / "params.yaml").read_bytes() == before


def test_a_calibration_set_is_a_benchmark_or_a_file_and_full_takes_all(project: Path) -> None:
    write_cell(project)
    path = project / "params.yaml"
    (project / "c4.txt").write_text("a text\n")
    params = yaml.safe_load(path.read_text())
    params["benchmarks"]["others"] = params["benchmarks"]["reviews"]
    path.write_text(yaml.safe_dump(params))
    list_study(project, "calibration", "tiny", "reviews", ["c4.txt"], full=True)
    entry = yaml.safe_load(path.read_text())["studies"]["calibration-tiny-reviews"]
    assert entry["texts"] == {"c4": "c4.txt"}
    assert entry["benchmarks"] == ["others"]
    assert entry["sequences"] == 128
    assert list_study(project, "calibration", "tiny", "reviews", ["c4.txt", "others"]) is None
    with pytest.raises(InputError, match=r"is in params\.yaml already"):
        list_study(project, "calibration", "tiny", "reviews", ["c4.txt", "reviews"])
    with pytest.raises(InputError, match="full: only calibration has"):
        list_study(project, "layers", "tiny", "reviews", full=True)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["c4.txt"], ["c4"]),
        (["wikitext2/test.jsonl", "c4/test.jsonl"], ["wikitext2-test", "c4-test"]),
        (["a/x/test.txt", "b/x/test.txt"], ["a-x-test", "b-x-test"]),
        (["rows.txt", "rows.jsonl"], ["rows_txt", "rows_jsonl"]),
        (["c4 (new).txt"], ["c4__new_"]),
    ],
)
def test_calibration_sets_have_names_of_their_own(project: Path, files: list[str], names: list[str]) -> None:
    write_cell(project)
    for file in files:
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        (project / file).write_text("a text\n")
    list_study(project, "calibration", "tiny", "reviews", files)
    entry = yaml.safe_load((project / "params.yaml").read_text())["studies"]["calibration-tiny-reviews"]
    assert entry["texts"] == dict(zip(names, files, strict=True))
    assert list_study(project, "calibration", "tiny", "reviews", files[::-1]) is None


@pytest.mark.parametrize(
    ("others", "line"),
    [
        (["c4.txt", "c4.txt"], "on: names a file twice"),
        (["c4.txt", "./c4.txt"], "on: names a file twice"),
        (["own.txt"], "texts.own: must be a name"),
        (["others.txt", "others"], "texts.others: must be a name"),
        (["others", "others"], "benchmarks: holds a value twice"),
        (["reviews"], "benchmarks: reviews is the cell's own"),
    ],
)
def test_a_calibration_set_that_is_there_twice_is_refused(project: Path, others: list[str], line: str) -> None:
    write_cell(project)
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["benchmarks"]["others"] = params["benchmarks"]["reviews"]
    path.write_text(yaml.safe_dump(params))
    before = path.read_bytes()
    for name in ("c4.txt", "own.txt", "others.txt"):
        (project / name).write_text("a text\n")
    with pytest.raises(InputError, match=line):
        list_study(project, "calibration", "tiny", "reviews", others)
    assert path.read_bytes() == before


def test_the_page_needs_a_result(project: Path) -> None:
    write_cell(project)
    assert call("studies") == (2, "", "error: studies: none has a result yet: `dsm study NAME` makes one\n")
    assert not (project / "docs").exists()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_home")
def test_a_study_runs_after_its_cell_and_then_not_again(finished_root: Path) -> None:
    root, cell = finished_root, open_cell(root=finished_root)
    forget(root, "report@tiny-reviews")
    for number, done in enumerate(("ran", "cached")):
        said = f"{number}.txt"
        assert start(root, *DSM, "study", "fractions", said=said).wait(500) == 0, (root / said).read_text()
        lines = [line.split()[:2] for line in (root / said).read_text().splitlines()]
        assert [line for line in lines if line[:1] == ["study"]] == [["study", done]]
        of_cell = [line for line in lines if line[0] in STEPS]
        assert of_cell == [[step, done if step == "report" else "cached"] for step in STEPS]
    assert "40%, at random" in (root / said).read_text(), "the table is shown"
    result = read_json(cell.study("fractions") / "result.json")
    assert result["records"][0]["value"] == read_json(cell.evaluation)["systems"]["base"]["accuracy"]
    assert start(root, *DSM, "studies", said="page.txt").wait(100) == 0
    assert "fractions-tiny-reviews.svg" in (root / "docs" / "studies.md").read_text()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_home")
def test_explanations_of_a_cell(finished_root: Path) -> None:
    root, cell = finished_root, open_cell(root=finished_root)
    assert start(root, *DSM, "explain", said="explain.txt").wait(300) == 0, (root / "explain.txt").read_text()
    assert (root / "explain.txt").read_text().splitlines()[-1] == "data/cells/tiny/reviews/explanation.html"
    assert "<!doctype html>" in (cell.directory / "explanation.html").read_text().lower()
    for number, done in enumerate(("ran", "cached")):
        said = f"nsa-{number}.txt"
        assert start(root, *DSM, "explain", "--nsa", said=said).wait(300) == 0, (root / said).read_text()
        lines = (root / said).read_text().splitlines()
        assert [line.split()[1] for line in lines if line.startswith("nsa  ")] == [done]
        assert lines[-1] == "data/cells/tiny/reviews/nsa.html"


@pytest.mark.slow
def test_explain_needs_a_finished_cell(project: Path) -> None:
    root = real_project(project / "unfinished").root
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        code, _, err = call("explain")
    assert code == 2
    assert "does not exist; run the cell's earlier steps first" in err.splitlines()[-1]
    assert not (root / "data" / "cells").exists()
