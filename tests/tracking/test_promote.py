"""Which version is champion: the rule, its record, and decisions of a person against it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from scipy.special import softmax

from tasks.pipeline.cell import Cell, open_cell
from tasks.pipeline.retraining import Promotion
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, read_jsonl, write_json, write_jsonl, write_parquet, write_text
from tasks.steps.register import register
from tasks.tracking.promotion import JUDGED, JUDGEMENT, REASON, decide, judge, level, promote, versions
from tasks.tracking.store import TOLERANCE, probabilities, tracking_uri
from tests.tracking.test_register import NAME, cell, master, on_a_file, pytestmark  # noqa: F401 - fixtures, and warnings of mlflow

RULE = Promotion()


def hits(right: int, n: int = 100, start: int = 0) -> np.ndarray:
    """n rows, of which `right` are right, from row `start` on."""
    rows = np.zeros(n, dtype=bool)
    rows[(start + np.arange(right)) % n] = True
    return rows


@pytest.mark.parametrize(
    ("challenger", "champion", "base", "rule", "promoted", "reason"),
    [
        (hits(80), None, hits(60), RULE, True, "no champion yet; better than the unpruned model (+0.200"),
        (hits(62), None, hits(60), RULE, False, "no champion yet; not detectably better than the unpruned model"),
        (hits(80), hits(60), hits(80), RULE, True, "better than the champion (+0.200"),
        (hits(60), hits(80), hits(40), RULE, False, "worse than the champion (−0.200"),
        (hits(80), hits(80), hits(60), RULE, True, "no worse, and better than the unpruned model"),
        (hits(80), hits(80), hits(78), RULE, False, "not detectably better than the champion"),
        (hits(79), hits(80), hits(60), RULE, False, "worse than the champion (−0.010"),
        (hits(79), hits(80), hits(60), Promotion(margin=0.02), True, "no worse"),
        (hits(70), hits(80), hits(40), Promotion(margin=0.2), False, "worse than the champion"),  # detectably
        (hits(65), hits(60), hits(60), Promotion(alpha=1.0), True, "better than the champion (+0.050"),
    ],
)
def test_the_rule(
    challenger: np.ndarray, champion: np.ndarray | None, base: np.ndarray, rule: Promotion, promoted: bool, reason: str
) -> None:
    decision = decide(challenger, base, champion, rule)
    assert decision.promoted is promoted
    assert reason in decision.reason
    assert (decision.versus_champion is None) is (champion is None)


def test_the_levels_of_all_judgements_add_up_to_alpha() -> None:
    """With one test each 1/2 + 1/6 + .. + 1/(k (k + 1)) = k / (k + 1); with two tests each, the two share it."""
    for tests in (1, 2):
        spent = sum(tests * level(0.05, judgement, tests) for judgement in range(1, 1001))
        assert spent == pytest.approx(0.05 * 1000 / 1001)


@pytest.mark.parametrize(
    ("difference", "judgement", "champion", "promoted"),
    [
        # Of so many rows where the two differ, all for the challenger: p = 2 / 2^n. The levels are 0.05 over 2, 6, 12..
        (7, 1, False, True),  # 0.0156 < 0.025
        (7, 2, False, False),  # 0.0156 > 0.0083
        (8, 2, False, True),  # 0.0078
        (8, 3, False, False),  # 0.0078 > 0.0042
        (9, 3, False, True),  # 0.0039
        (7, 1, True, False),  # 0.0156 > 0.0125, since it is compared with two
        (8, 1, True, True),  # 0.0078
    ],
)
def test_every_further_judgement_on_the_same_rows_needs_a_smaller_p(
    difference: int, judgement: int, champion: bool, promoted: bool
) -> None:
    challenger, other = hits(60 + difference), hits(60)
    decision = decide(challenger, other, other if champion else None, RULE, judgement)
    assert decision.promoted is promoted
    assert decision.level == pytest.approx(0.05 / judgement / (judgement + 1) / (2 if champion else 1))
    assert f"; judgement {judgement} on these test rows: level {decision.level:.2g}" in decision.reason


def client_of(made: Cell) -> MlflowClient:
    return MlflowClient(tracking_uri(made.root), tracking_uri(made.root))


def champion_of(made: Cell) -> int | None:
    aliases = client_of(made).get_registered_model(NAME).aliases
    return int(aliases["champion"]) if "champion" in aliases else None


def with_rule(made: Cell, **rule: float) -> Cell:
    """The cell under another rule."""
    path = made.root / "params.yaml"
    params = yaml.safe_load(path.read_text()) | {"retrain": {"promotion": rule}}
    write_text(path, yaml.safe_dump(params))
    return open_cell(root=made.root)


def favour(made: Cell, right: str) -> None:
    """Makes gold what one system answered, so that it is right in every row and the other where both agree."""
    frame = pd.read_parquet(made.predictions)
    frame["gold"] = frame[right]
    write_parquet(made.predictions, frame)


def change(made: Cell) -> None:
    """Other content for the same model: a new version with the answers of the previous one."""
    recipe = read_json(made.pruned)
    margin = recipe["adaptation"]["margin"] + 0.01
    write_json(made.pruned, recipe | {"adaptation": recipe["adaptation"] | {"margin": margin}})
    register(made)


@on_a_file
def test_a_challenger_that_is_not_better_stays_one(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    favour(cell, "base")
    register(cell)
    capsys.readouterr()
    judge(cell)
    told = capsys.readouterr().out
    assert told.startswith(f"{NAME}: version 1 stays challenger: no champion yet; not detectably better")
    assert champion_of(cell) is None
    version = client_of(cell).get_model_version(NAME, "1")
    assert version.tags[REASON] in told
    written = read_json(Path(client_of(cell).download_artifacts(version.run_id, "promotion.json", str(cell.root))))
    assert (written["promoted"], written["rule"]) == (False, {"alpha": 0.05, "margin": 0.0})
    assert (written["judgement"], written["level"]) == (1, 0.025)
    assert written["n"] == len(pd.read_parquet(cell.predictions))

    def fail(*_: Any) -> None:
        raise AssertionError("asked again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.tracking.promotion.probabilities", fail)
        judge(cell)
    assert "as judged before: no champion yet" in capsys.readouterr().out


def test_promotion_rollback_and_their_record(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    made = with_rule(cell, alpha=1.0)
    frame = pd.read_parquet(made.predictions)
    frame["gold"] = frame["pruned"]
    frame["base"] = 1 - frame["pruned"]
    write_parquet(made.predictions, frame)
    register(made)
    judge(made)
    assert champion_of(made) == 1
    judge(made)
    assert capsys.readouterr().out.endswith(f"{NAME}: version 1 is the champion already\n")

    change(made)
    judge(made)  # the same answers: no worse than the champion, and better than the base
    assert champion_of(made) == 2
    assert promote(made, 1, "complaints about 2") == 2
    assert champion_of(made) == 1
    capsys.readouterr()
    judge(made)  # the rule does not undo what a person did
    assert "version 2 stays challenger" in (told := capsys.readouterr().out)
    assert "moved champion away from it" in told
    assert "complaints about 2" in told
    assert champion_of(made) == 1
    with pytest.raises(InputError, match="1 is the champion of tiny-reviews already"):
        promote(made, 1, "again")
    with pytest.raises(InputError, match=r"version: tiny-reviews has no version 7; choose from \[1, 2\]"):
        promote(made, 7, "typing error")
    found, moves = versions(made)
    assert [(version.number, version.aliases) for version in found] == [(2, ["challenger"]), (1, ["champion"])]
    assert "no worse" in found[0].reason
    assert [(move.before, move.after) for move in moves] == [(None, 1), (1, 2), (2, 1)]
    assert moves[-1].why == "complaints about 2"
    assert [move.by_rule for move in moves] == [True, True, False]
    assert all("@" in move.who and move.when.endswith("+00:00") for move in moves)


@on_a_file
def test_the_alias_stays_if_a_version_answers_otherwise(cell: Cell) -> None:  # noqa: F811
    made = with_rule(cell, alpha=1.0)
    register(made)
    frame = pd.read_parquet(made.predictions)
    frame["pruned_logprobs"] = [[0.0, -9.0]] * len(frame)
    write_parquet(made.predictions, frame)
    with pytest.raises(InputError, match="version 1 of tiny-reviews: answers row"):
        judge(made)
    assert champion_of(made) is None


@on_a_file
def test_predictions_in_bfloat16_may_differ_a_little(cell: Cell) -> None:  # noqa: F811
    made = with_rule(cell, alpha=1.0)
    frame = pd.read_parquet(made.predictions)
    moved = [softmax(logprobs) + np.array([0.01, -0.01]) for logprobs in frame["pruned_logprobs"]]
    frame["pruned_logprobs"] = [np.log(p) for p in moved]
    write_parquet(made.predictions, frame)
    with pytest.raises(InputError, match="version 1 of tiny-reviews: answers row"):
        register(made)
    found = read_json(made.evaluation)
    write_json(made.evaluation, found | {"precision": found["precision"] | {"precision": "bfloat16"}})
    register(made)


@on_a_file
def test_rows_that_the_champion_was_adapted_on_do_not_count(cell: Cell) -> None:  # noqa: F811
    made = with_rule(cell, alpha=1.0)
    rows = pd.read_parquet(made.predictions)
    samples = read_jsonl(made.samples)
    write_jsonl(made.samples, [sample | {"prompt": rows["prompt"][i]} for i, sample in enumerate(samples[:3])])
    favour(made, "pruned")
    register(made)
    promote(made, 1, "the first one")
    shutil.copy(made.samples, made.root / "old.jsonl")
    write_jsonl(made.samples, samples)
    change(made)
    judge(made)
    version = client_of(made).get_model_version(NAME, "2")
    written = read_json(Path(client_of(made).download_artifacts(version.run_id, "promotion.json", str(made.root))))
    assert written["n"] == len(rows) - 3


@on_a_file
def test_a_champion_with_other_options_is_not_compared(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    register(cell)
    promote(cell, 1, "the first one")
    path = cell.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["benchmarks"]["reviews"]["options"] = [" bad", " good"]
    write_text(path, yaml.safe_dump(params))
    made = open_cell(root=cell.root)
    with pytest.MonkeyPatch.context() as patch:  # its predictions are those of the other options
        patch.setitem(TOLERANCE, "float32", 1.0)
        register(made)
        judge(made)
    assert (
        "cannot be compared: version 1 of tiny-reviews: answers [' negative', ' positive']" in capsys.readouterr().out
    )
    assert champion_of(made) == 1


@on_a_file
@pytest.mark.parametrize("broken", ["it cannot be loaded", "it cannot be asked"])
def test_a_failure_to_judge_is_told_and_tried_again(
    cell: Cell,  # noqa: F811
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    favour(cell, "base")
    register(cell)
    promote(cell, 1, "the first one")
    change(cell)

    def fail(name: str, version: int, *rest: Any) -> Any:
        if version == 1:
            raise InputError("DSM_DEVICE", broken)
        return probabilities(name, version, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("tasks.tracking.promotion.probabilities", fail)
        for _ in range(2):
            with pytest.raises(InputError, match=f"DSM_DEVICE: {broken}"):
                judge(cell)
    version = client_of(cell).get_model_version(NAME, "2")
    assert not {JUDGED, REASON} & set(version.tags)
    assert not [tag for tag in client_of(cell).get_registered_model(NAME).tags if tag.startswith(JUDGEMENT)]
    judge(cell)
    assert {JUDGED, REASON} <= set(client_of(cell).get_model_version(NAME, "2").tags)


@on_a_file
def test_judgements_on_the_same_rows_are_counted(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    def told() -> str:
        capsys.readouterr()
        judge(cell)
        return capsys.readouterr().out

    favour(cell, "base")
    register(cell)
    with pytest.MonkeyPatch.context() as patch:  # interrupted after it was recorded
        patch.setattr("tasks.tracking.promotion._write_down", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            judge(cell)
    assert "; judgement 1 on these test rows: level 0.025" in told()
    assert "judged before" in told()
    change(cell)
    assert "; judgement 2 on these test rows: level 0.0083" in told()
    with_rule(cell, alpha=0.1)
    made = open_cell(root=cell.root)
    judge(made)  # the same version by another rule
    assert "; judgement 3 on these test rows: level 0.0083" in capsys.readouterr().out
    written = read_json(
        Path(
            client_of(made).download_artifacts(
                client_of(made).get_model_version(NAME, "2").run_id, "promotion.json", str(made.root)
            )
        )
    )
    assert (written["judgement"], written["level"]) == (3, pytest.approx(0.1 / 12))
    rows = pd.read_parquet(made.predictions)
    write_parquet(made.predictions, rows.iloc[:-1])  # other rows: no version has been judged on them
    judge(made)
    assert "; judgement 1 on these test rows: level 0.05\n" in capsys.readouterr().out
    assert len([tag for tag in client_of(made).get_registered_model(NAME).tags if tag.startswith(JUDGEMENT)]) == 4


def test_what_is_not_registered_is_told(cell: Cell) -> None:  # noqa: F811
    for call in (judge, versions, lambda made: promote(made, 1, "x")):
        with pytest.raises(InputError, match="tiny-reviews: is not registered; `dsm run` registers it"):
            call(cell)
