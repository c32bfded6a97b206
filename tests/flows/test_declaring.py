"""What options write into params.yaml: all of it or nothing, comments stay in place, and entries can be removed."""

import json
from pathlib import Path

import pytest
import yaml

from flows.cells import has_result, list_cell
from flows.declaring import Asked, declare
from flows.removal import taken_back_without_result
from tasks.models.hashing import sha256_directory
from tasks.pipeline.settings import load_settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import sha256_file, write_text
from tests.flows.stand_in_project import REAL
from tests.flows.test_cli import call
from tests.tiny import save_tiny


@pytest.fixture
def own(project: Path) -> Path:
    """The real params.yaml beside a user's own model and rows."""
    write_text(project / "params.yaml", (REAL / "params.yaml").read_text())
    save_tiny(project / "mine" / "Tiny-1.0")
    rows = [{"question": f"Is {i} odd?", "choices": ["no", "yes"], "answer": i % 2} for i in range(40)]
    write_text(project / "mine" / "quiz.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return project


MINE = Asked(["mine/Tiny-1.0"], ["mine/quiz.jsonl"])


def test_a_model_and_a_benchmark_are_added_and_nothing_else_changes(own: Path) -> None:
    before = (own / "params.yaml").read_text()
    declared = declare(own, MINE)
    assert (declared.models, declared.benchmarks) == (["tiny-1_0"], ["quiz"])
    sha256 = sha256_directory(own / "mine" / "Tiny-1.0")
    text = (own / "params.yaml").read_text()
    added = (
        "  tiny-1_0:\n"
        "    # of the model in the directory: `dsm hash mine/Tiny-1.0`\n"
        f"    source: {{kind: path, path: mine/Tiny-1.0, sha256: {sha256}}}\n"
    )
    assert added in text
    at = text.index("  quiz:\n")
    assert text[:at].replace(added, "") + text[at:].partition("limits: {test: 400, transfer: 30}\n")[2] == before
    quiz = yaml.safe_load(text)["benchmarks"]["quiz"]
    rows = own / "mine" / "quiz.jsonl"
    assert quiz["train"]["source"] == {"kind": "path", "path": "mine/quiz.jsonl", "sha256": sha256_file(rows)}
    assert "    # guessed from the columns: prompt, options, labels and gold; check them" in text[at:]
    assert declare(own, MINE).notes == ["mine/quiz.jsonl is quiz in params.yaml, which says how its columns are read"]
    assert (own / "params.yaml").read_text() == text


def test_what_was_added_and_changed_is_taken_back_byte_by_byte(own: Path) -> None:
    before = (own / "params.yaml").read_bytes()
    asked = Asked(MINE.models, MINE.benchmarks, limit=7, seed=3, changes=["attribution.max_nodes=4"])

    def fail() -> None:
        with taken_back_without_result(own):
            declared = declare(own, asked)
            assert load_settings(own).adaptation.seed == 3
            with taken_back_without_result(own):
                list_cell(own, declared.models[0], declared.benchmarks[0])
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (own / "params.yaml").read_bytes() == before


def test_of_two_cells_the_one_without_a_result_goes(own: Path) -> None:
    before = (own / "params.yaml").read_text()

    def fail() -> None:
        with taken_back_without_result(own):
            declare(own, Asked(["gemma-3-270m", "mine/Tiny-1.0"], ["mine/quiz.jsonl"], changes=["adaptation.seed=5"]))
            with taken_back_without_result(own):
                list_cell(own, "gemma-3-270m", "quiz")
                has_result("pipeline.cells", "gemma-3-270m-quiz")
            with taken_back_without_result(own):
                list_cell(own, "tiny-1_0", "quiz")
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    now = load_settings(own)
    assert list(now.pipeline.cells)[1:] == ["gemma-3-270m-quiz"]
    assert "quiz" in now.benchmarks
    assert "tiny-1_0" not in now.models
    assert now.adaptation.seed == 5  # the result depends on it
    comment = "# A line names a benchmark of the library"
    assert (own / "params.yaml").read_text().partition(comment)[2].startswith(before.partition(comment)[2].rstrip())


def test_a_setting_goes_back_alone_where_somebody_else_wrote_in_between(own: Path) -> None:
    def fail() -> None:
        with taken_back_without_result(own):
            declare(own, Asked(changes=["attribution.max_nodes=4", "attribution.stability=0.9"]))
            path = own / "params.yaml"
            write_text(path, path.read_text().replace("stability: 0.9 ", "stability: 0.8 ") + "# by hand\n")
            raise ZeroDivisionError

    before = load_settings(own).attribution.max_nodes
    with pytest.raises(ZeroDivisionError):
        fail()
    assert load_settings(own).attribution.max_nodes == before
    assert load_settings(own).attribution.stability == 0.8
    assert (own / "params.yaml").read_text().endswith("# by hand\n")


def test_settings_are_changed_where_they_stand(own: Path) -> None:
    before = (own / "params.yaml").read_text().splitlines()
    asked = Asked(
        benchmarks=["boolq", "rotten_tomatoes"],
        limit=20,
        seed=4,
        changes=["attribution.max_nodes=8", "search.fractions=[0.1, 0.2]", "benchmarks.boolq.template=harness"],
    )
    told = declare(own, asked).notes
    assert "changed in params.yaml: adaptation.seed: 4 (it was 0)" in told
    assert 'changed in params.yaml: benchmarks.boolq.template: "harness"' in told
    settings = load_settings(own)
    assert (settings.attribution.max_nodes, settings.search.fractions) == (8, [0.1, 0.2])
    assert [settings.benchmarks[name].limits.test for name in ("boolq", "rotten_tomatoes")] == [20, 20]
    assert all(settings.benchmarks[name].limits.transfer <= 20 for name in ("boolq", "rotten_tomatoes"))
    after = (own / "params.yaml").read_text().splitlines()
    assert len(after) == len(before)
    same = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert all(a.split(":")[0] == b.split(":")[0] for a, b in same)
    assert declare(own, asked).notes == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("max_nodes=8", "set: must be FIELD=VALUE, such as attribution.max_nodes=8, not 'max_nodes=8'"),
        ("attribution.max_nodes", "set: must be FIELD=VALUE, such as attribution.max_nodes=8, not "),
        ("attribution.max_nods=8", "set: attribution.max_nods is not a setting; choose from max_nodes, method, "),
        ("atribution.max_nodes=8", "set: atribution is not a setting; choose from adaptation, attribution, "),
        ("attribution.max_nodes.x=8", "set: attribution.max_nodes has no fields"),
        ("attribution.max_nodes=-1", "attribution.max_nodes: Input should be greater than or equal to 4, not -1"),
        ("attribution.max_nodes=[", "set attribution.max_nodes: not valid YAML"),
        ("search.fractions=[2]", "search.fractions.0: Input should be less than 1, not 2"),
        ("benchmarks.quiz.limits.test=9", "set: benchmarks.quiz is not a setting; choose from boolq, rotten_tomatoes"),
        ("benchmarks.boolq.tmplate=sadi", "benchmarks.boolq.tmplate: Extra inputs are not permitted"),
        ("pipeline.models=[]", "set: cannot change the lists of the pipeline; `dsm run` adds a cell"),
    ],
)
def test_a_wrong_setting_writes_nothing(own: Path, change: str, problem: str) -> None:
    before = (own / "params.yaml").read_bytes()
    with pytest.raises(InputError) as refused:
        declare(own, Asked(MINE.models, MINE.benchmarks, changes=["adaptation.seed=9", change]))
    assert str(refused.value).startswith(problem)
    assert (own / "params.yaml").read_bytes() == before


def test_a_limit_and_a_wrong_file_write_nothing(own: Path) -> None:
    before = (own / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=r"^benchmarks\.boolq\.limits\.test: Input should be greater than 0"):
        declare(own, Asked(benchmarks=["boolq"], limit=0))
    write_text(own / "bad.csv", "a,b\n1,2\n")
    with pytest.raises(InputError, match=r"^benchmark: bad.csv: no column is recognised as the prompt"):
        declare(own, Asked(MINE.models, ["bad.csv"]))
    assert (own / "params.yaml").read_bytes() == before


def test_hash(own: Path) -> None:
    assert call("hash", "mine/Tiny-1.0") == (0, sha256_directory(own / "mine" / "Tiny-1.0") + "\n", "")
    assert call("hash", "mine/quiz.jsonl") == (0, sha256_file(own / "mine" / "quiz.jsonl") + "\n", "")
    assert call("hash", "mine")[::2] == (
        2,
        f"error: path: {own / 'mine'} is not a model directory: it has no config.json\n",
    )
