"""The step `promote`: decides by a rule, on the current test rows, whether the challenger becomes champion.

This is not a DVC stage, since it acts in MLflow, like `register`. Both versions are loaded from the registry and answer
the same rows. If the challenger is not promoted, the champion stays, and the reason is recorded with the challenger.
"""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.evidence.statistics import mcnemar, standard_error
from tasks.evidence.verdict import p_value, signed
from tasks.pipeline.cell import Cell
from tasks.pipeline.retraining import Promotion
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_jsonl, sha256_file, sha256_json
from tasks.tracking.store import (
    CHALLENGER,
    CHAMPION,
    Move,
    OtherOptions,
    check_answers,
    move_champion,
    moves,
    options_of,
    probabilities,
    store,
)

JUDGED = "judged"  # tag of a version: hash of what it was judged against
REASON = "reason"  # tag of a version: the outcome and why
JUDGEMENT = "judgement."  # prefix of the tags of a registered model, one for each judgement on the same test rows
MISSING = "RESOURCE_DOES_NOT_EXIST"  # MLflow's error code for something that does not exist
CHECKED = 8  # rows on which a version must agree with its predictions before a person's choice becomes champion

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Decision:
    """Whether the challenger is promoted, and why.

    Attributes:
        versus_base, versus_champion: the paired tests, as `mcnemar` returns them; empty or None without a comparison.
        level: a test with a smaller p counts as a detected difference; None if nothing could be compared.
    """

    promoted: bool
    reason: str
    versus_base: dict[str, Any]
    versus_champion: dict[str, Any] | None
    level: float | None


def level(alpha: float, judgement: int, tests: int) -> float:
    """The level of each test of the k-th judgement on the same rows: alpha / (k (k + 1)), shared by its tests.

    The more challengers are judged on the same rows, the more of them look better by chance. 1/2 + 1/6 + 1/12 + .. is
    never more than 1: the probability that any of these tests finds a difference that is not there is at most alpha,
    however many judgements there will be.
    """
    return alpha / (judgement * (judgement + 1)) / tests


def decide(challenger: Right, base: Right, champion: Right | None, rule: Promotion, judgement: int = 1) -> Decision:
    """The rule. A challenger is promoted if it is detectably better than the champion; or if its accuracy is at most
    `margin` below the champion's, not detectably so, and detectably above the unpruned model's. Without a champion, if
    it is detectably better than the unpruned model.

    Detectably: the exact McNemar test on the same rows gives p < `level`.

    Args:
        challenger, base, champion: [n] which rows each got right; None: there is no champion.
        judgement: how many challengers have been judged on these rows, with this one.
    """
    alpha = level(rule.alpha, judgement, 1 if champion is None else 2)
    decision = _decide(challenger, base, champion, rule.margin, alpha)
    return replace(decision, reason=f"{decision.reason}; judgement {judgement} on these test rows: level {alpha:.2g}")


def _decide(challenger: Right, base: Right, champion: Right | None, margin: float, alpha: float) -> Decision:
    to_base = mcnemar(challenger, base)
    beats_base = _detected(to_base, alpha) > 0
    than_base = f"than the unpruned model {_numbers(to_base)}"
    if champion is None:
        verb = "better" if beats_base else "not detectably better"
        return Decision(beats_base, f"no champion yet; {verb} {than_base}", to_base, None, alpha)
    to_champion = mcnemar(challenger, champion)
    sign = _detected(to_champion, alpha)
    than_champion = f"than the champion {_numbers(to_champion)}"
    if sign > 0:
        return Decision(True, f"better {than_champion}", to_base, to_champion, alpha)
    if sign < 0 or to_champion["difference"] < -margin:
        return Decision(False, f"worse {than_champion}", to_base, to_champion, alpha)
    reason = f"not detectably better {than_champion}"
    reason += f", but no worse, and better {than_base}" if beats_base else f", nor {than_base}"
    return Decision(beats_base, reason, to_base, to_champion, alpha)


def _detected(comparison: dict[str, Any], alpha: float) -> int:
    return int(np.sign(comparison["difference"])) if comparison["p"] < alpha else 0


def _numbers(comparison: dict[str, Any]) -> str:
    return (
        f"({signed(comparison['difference'])} ± {comparison['stderr']:.3f}, exact McNemar {p_value(comparison['p'])})"
    )


def judge(cell: Cell) -> None:
    """Compares the cell's challenger with its champion, records the decision, and moves `champion` at the end.

    Raises:
        InputError: nothing is registered, a registered version does not answer as predictions.parquet says, or one
            cannot be loaded or asked. Nothing is recorded then: the next call judges again.
    """
    with store(cell.root) as (client, _):
        aliases = _aliases(client, cell.name)
        if CHALLENGER not in aliases:
            raise InputError(cell.name, "has no challenger; `register` has not run")
        print(f"{cell.name}: {_judged(client, cell, aliases[CHALLENGER], aliases.get(CHAMPION))}")


def _judged(client: Any, cell: Cell, version: int, champion: int | None) -> str:
    if version == champion:
        return f"version {version} is the champion already"
    if (last := _last_move(client, cell.name, version)) and last.before == version and not last.by_rule:
        return f"version {version} stays challenger: {last.who} moved champion away from it at {last.when}: {last.why}"
    rule = cell.settings.retrain.promotion
    challenger = client.get_model_version(cell.name, str(version))
    key = sha256_json([champion, sha256_file(cell.predictions), rule.model_dump()])
    if challenger.tags.get(JUDGED) == key:
        return f"version {version} stays challenger, as judged before: {challenger.tags[REASON]}"

    rows = _fair_rows(cell, client, champion)
    options = options_of(cell, rows)
    answers = probabilities(cell.name, version, rows, options)
    check_answers(cell, version, answers, rows)
    right = {"base": (rows["base"] == rows["gold"]).to_numpy(), "challenger": _right(answers, rows)}
    try:
        if champion is not None:
            right["champion"] = _right(probabilities(cell.name, champion, rows, options), rows)
    except OtherOptions as error:  # they have no row in common
        decision = Decision(False, f"cannot be compared: {error}", {}, None, None)
    else:
        judgement = _judgement(client, cell, f"{version}.{key[:16]}")
        decision = decide(right["challenger"], right["base"], right.get("champion"), rule, judgement)
        _write_down(client, cell, challenger, champion, right, decision, judgement)
    client.set_model_version_tag(cell.name, str(version), REASON, decision.reason)
    if decision.promoted:
        move_champion(client, cell.name, version, f"{decision.reason}; rule: {rule.model_dump()}", by_rule=True)
        return f"version {version} is the champion now: {decision.reason}"
    client.set_model_version_tag(cell.name, str(version), JUDGED, key)
    return f"version {version} stays challenger: {decision.reason}"


def _judgement(client: Any, cell: Cell, name: str) -> int:
    """The number of this judgement among all on the same test rows (prompts and gold options), from 1.

    The number is recorded before the decision, so that an interrupted judgement counts, too. When it is
    repeated, it keeps its number.
    """
    rows = pd.read_parquet(cell.predictions, columns=["prompt", "gold"])
    asked = f"{JUDGEMENT}{sha256_json(sorted(zip(rows['prompt'], rows['gold'].tolist(), strict=True)))[:16]}."
    tags = client.get_registered_model(cell.name).tags
    if known := tags.get(asked + name):
        return int(known)
    number = 1 + sum(str(tag).startswith(asked) for tag in tags)
    client.set_registered_model_tag(cell.name, asked + name, str(number))
    return number


def _last_move(client: Any, name: str, version: int) -> Move | None:
    """The last move of `champion` to or from this version."""
    return next((move for move in reversed(moves(client, name)) if version in (move.before, move.after)), None)


def _aliases(client: Any, name: str) -> dict[str, int]:
    from mlflow.exceptions import MlflowException

    try:
        return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        raise InputError(name, "is not registered; `dsm run` registers it") from None


def _fair_rows(cell: Cell, client: Any, champion: int | None) -> pd.DataFrame:
    """The evaluated test rows without those that the champion was adapted on: new data may have changed the split."""
    rows = pd.read_parquet(cell.predictions)
    if champion is None:
        return rows
    run = client.get_model_version(cell.name, str(champion)).run_id
    with tempfile.TemporaryDirectory(dir=_scratch(cell)) as work:
        seen = {row["prompt"] for row in read_jsonl(Path(client.download_artifacts(run, "samples.jsonl", work)))}
    fair = rows[~rows["prompt"].isin(seen)].reset_index(drop=True)
    if fair.empty:
        raise InputError(cell.predictions.name, "holds only rows that the champion was adapted on")
    return fair


def _scratch(cell: Cell) -> Path:
    cell.scratch.mkdir(parents=True, exist_ok=True)
    return cell.scratch


def _right(answers: list[npt.NDArray[np.float64]], rows: pd.DataFrame) -> Right:
    right: Right = np.array([int(p.argmax()) for p in answers]) == rows["gold"].to_numpy()
    return right


def _write_down(
    client: Any,
    cell: Cell,
    version: Any,
    champion: int | None,
    right: dict[str, Right],
    decision: Decision,
    judgement: int,
) -> None:
    """Logs rule, numbers and decision to the run of the challenger."""
    n = len(right["challenger"])
    accuracy = {name: float(rows.mean()) for name, rows in right.items()}
    written = {
        "challenger": int(version.version),
        "champion": champion,
        "rule": cell.settings.retrain.promotion.model_dump(),
        "judgement": judgement,
        "n": n,
        "accuracy": {name: {"accuracy": a, "stderr": standard_error(a, n)} for name, a in accuracy.items()},
        **asdict(decision),
    }
    client.log_dict(version.run_id, written, "promotion.json")
    client.set_tag(version.run_id, REASON, decision.reason)
    if decision.versus_champion:
        for name in ("difference", "p"):
            client.log_metric(version.run_id, f"versus_champion_{name}", decision.versus_champion[name])


def promote(cell: Cell, version: int, why: str) -> int | None:
    """Makes a version champion by a person's decision, such as a rollback. Its answers are checked first.

    Returns:
        The version that was champion before.

    Raises:
        InputError: there is no such version, or its answers differ from the predictions of its own run.
    """
    from mlflow.exceptions import MlflowException

    with store(cell.root) as (client, _):
        before = _aliases(client, cell.name).get(CHAMPION)
        try:
            run = client.get_model_version(cell.name, str(version)).run_id
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            known = sorted(int(v.version) for v in client.search_model_versions(f"name = '{cell.name}'"))
            raise InputError("version", f"{cell.name} has no version {version}; choose from {known}") from None
        if version == before:
            raise InputError("version", f"{version} is the champion of {cell.name} already")
        with tempfile.TemporaryDirectory(dir=_scratch(cell)) as work:
            rows = pd.read_parquet(client.download_artifacts(run, "predictions.parquet", work)).head(CHECKED)
        check_answers(cell, version, probabilities(cell.name, version, rows, options_of(cell, rows)), rows)
        move_champion(client, cell.name, version, why, by_rule=False)
        return before


@dataclass(frozen=True)
class Version:
    """A registered version, for `dsm versions`."""

    number: int
    aliases: list[str]
    made: int  # milliseconds since 1970
    metrics: dict[str, float]
    reason: str


def versions(cell: Cell) -> tuple[list[Version], list[Move]]:
    """The registered versions of the cell, newest first, and the moves of `champion`, oldest first."""
    with store(cell.root) as (client, _):
        aliases = _aliases(client, cell.name)
        entries = [
            Version(
                number=int(version.version),
                aliases=sorted(alias for alias, number in aliases.items() if number == int(version.version)),
                made=version.creation_timestamp,
                metrics=client.get_run(version.run_id).data.metrics,
                reason=version.tags.get(REASON, "not judged"),
            )
            for version in client.search_model_versions(f"name = '{cell.name}'")
        ]
        return sorted(entries, key=lambda version: -version.number), moves(client, cell.name)
