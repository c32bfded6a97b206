"""The report of a cell: one HTML file that loads nothing else."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup
from scipy.special import softmax

from tasks.evidence import verdict as words
from tasks.evidence.figures import figures
from tasks.evidence.jinja import templates
from tasks.evidence.reading import Evidence, read_evidence
from tasks.evidence.statistics import spearman
from tasks.method.options import Search
from tasks.method.recipe import choose
from tasks.method.strategies import STRATEGIES, Replayed, at_depths
from tasks.pipeline.cell import Cell
from tasks.runtime.files import sha256_file

FLIPS_SHOWN = 100  # per direction; predictions.parquet has the rest
LONG = 280  # a row's text with more characters is folded
SECTIONS = {
    "results": "Results",
    "choice": "What was pruned, and why",
    "transfer": "Transfer to test rows",
    "strategies": "Cheaper searches",
    "scores": "Scores",
    "examples": "Examples",
    "flips": "Changed answers",
    "limits": "What this does not show",
    "provenance": "Provenance",
    "reproduce": "How to reproduce",
}  # in the list of contents, by the id of the section in the template


def render(cell: Cell) -> str:
    """The text of report.html, for a cell with all other files. Equal files and settings give equal text.

    Raises:
        InputError: a file of the cell is missing.
    """
    evidence = read_evidence(cell)
    return templates().get_template("report.html.j2").render(_context(cell, evidence))


def _context(cell: Cell, evidence: Evidence) -> dict[str, Any]:
    evaluation, pruned = evidence.evaluation, evidence.pruned
    options = evaluation["options"]
    names = [words.option_name(options, i) for i in range(len(evaluation["systems"]["base"]["predicted"]))]
    varying = _varying([row["prompt"] for row in evidence.samples] + evidence.predictions["prompt"].tolist())
    gained, lost = _flips(evidence, options, varying)
    pairs = int((evidence.grid["layer"] >= 0).sum())
    strategies = _strategies(evidence, cell.settings.search)
    return {
        "contents": [(name, title) for name, title in SECTIONS.items() if name != "strategies" or strategies],
        "cell": cell,
        "evidence": evidence,
        "pruned": pruned,
        "evaluation": evaluation,
        "systems": evaluation["systems"],
        "measured": words.measured(evaluation),
        "verdict": words.verdict(pruned, evaluation),
        "notes": words.notes(evaluation),
        "trail": words.trail(pruned, pairs),
        "pairs": pairs,
        "blank": pairs < evidence.grid.layer[evidence.grid.layer >= 0].nunique() * len(cell.settings.search.fractions),
        "options": names,
        "gold": [sum(row) for row in evaluation["systems"]["base"]["confusion"]],
        "figures": {name: Markup(svg) for name, svg in figures(evidence).items()},
        "margin_spearman": _margin_spearman(evidence),
        "strategies": strategies,
        "layers": _layers(evidence),
        "samples": [
            {"text": varying(row["prompt"]), "gold": row["options"][row["gold"]].strip(), "id": row["id"]}
            for row in evidence.samples
        ],
        "gained": gained[:FLIPS_SHOWN],
        "lost": lost[:FLIPS_SHOWN],
        "counts": {"gained": len(gained), "lost": len(lost), "shown": FLIPS_SHOWN},
        "long": LONG,
        "sources": {
            "Model": {"licence": cell.model_spec.licence, **cell.model_spec.source.model_dump(exclude_none=True)},
            "Benchmark": {
                "licence": cell.benchmark_spec.licence,
                **cell.benchmark_spec.train.source.model_dump(exclude_none=True),
            },
        },
        "settings": {
            section: getattr(cell.settings, section).model_dump()
            for section in ("adaptation", "attribution", "search", "evaluation", "precision")
        }
        | {"limits": cell.benchmark_spec.limits.model_dump()},
        "hashes": {
            path.name: sha256_file(path)
            for path in (cell.samples, cell.scores, cell.grid, cell.pruned, cell.predictions)
        },
        "header": evidence.scores.header,
        "meaning": words.meaning(evidence.scores.header),
    }


def _common_start(texts: list[str]) -> str:
    first, last = min(texts), max(texts)  # what the first and the last in order share, all share
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(character for character, _ in same)


def _varying(prompts: list[str]) -> Any:
    """A function that removes from a prompt the start and end that all prompts share: the template, shown once."""
    head = _common_start(prompts)
    tail = _common_start([prompt[::-1] for prompt in prompts])[::-1]
    head = head[: head.rfind("\n") + 1]  # whole lines only: two rows may begin with the same word
    tail = tail[tail.find("\n") :] if "\n" in tail else ""

    def cut(prompt: str) -> str:
        short = prompt[len(head) : len(prompt) - len(tail)] if len(head) + len(tail) < len(prompt) else ""
        return short.strip() or prompt

    return cut


def _probabilities(logprobs: pd.Series) -> list[npt.NDArray[np.float64]]:
    """Softmax over the options of each row."""
    return [softmax(np.asarray(row, dtype=np.float64)) for row in logprobs]


def _flips(evidence: Evidence, options: list[str] | None, varying: Any) -> tuple[list[Any], list[Any]]:
    """Rows that only the pruned model gets right, and rows that only the base gets right; the largest change first."""
    frame = evidence.predictions
    base, pruned = _probabilities(frame["base_logprobs"]), _probabilities(frame["pruned_logprobs"])
    gained: list[Any] = []
    lost: list[Any] = []
    answers = (frame[name].tolist() for name in ("id", "prompt", "gold", "base", "pruned"))
    for i, (name, prompt, gold, before, after) in enumerate(zip(*answers, strict=True)):
        if (before == gold) == (after == gold):
            continue
        flip = {
            "id": name,
            "text": varying(prompt),
            "gold": words.option_name(options, gold),
            "base": words.option_name(options, before),
            "pruned": words.option_name(options, after),
            "before": float(base[i][gold]),
            "after": float(pruned[i][gold]),
        }
        (gained if after == gold else lost).append(flip)
    for flips in (gained, lost):
        flips.sort(key=lambda flip: (-abs(flip["after"] - flip["before"]), flip["id"]))
    return gained, lost


def _margin_spearman(evidence: Evidence) -> float | None:
    """Rank correlation of the mean gold margins on the adaptation set with those on test rows."""
    if not evidence.has_transfer:
        return None
    both = evidence.grid.merge(evidence.transfer_grid, on=["layer", "fraction"]).query("layer >= 0")
    rank, _ = spearman(both["margin_x"], both["margin_y"])
    return None if np.isnan(rank) else rank


def _strategies(evidence: Evidence, search: Search) -> list[dict[str, Any]]:
    """What the cheaper searches would have chosen; empty if the grid does not have every pair.

    Regret is the accuracy of the pair that the exhaustive search chose, minus that of the pair that this search chose.
    """
    scores, grid, fractions = evidence.scores.ranked, evidence.grid, search.fractions
    if len(grid) < 1 + len(scores) * len(fractions):
        return []

    def accuracy(surface: pd.DataFrame, pair: dict[str, Any]) -> float:
        rows = surface[(surface.layer == pair["layer"]) & (surface.fraction == pair["fraction"])]
        return float(rows.accuracy.iloc[0])

    best, _ = choose(grid)
    outcomes = []
    from_cell = {f"from_cell, {search.cell}": at_depths(search.depths)} if search.cell and search.depths else {}
    for name, strategy in {**STRATEGIES, **from_cell}.items():
        if name == "dropping":  # chooses what exhaustive chooses
            continue
        looked_at = strategy(scores, fractions, Replayed(grid))
        pair, _ = choose(looked_at)
        surfaces = {"adaptation": grid} | ({"test": evidence.transfer_grid} if evidence.has_transfer else {})
        regret = {where: accuracy(surface, best) - accuracy(surface, pair) for where, surface in surfaces.items()}
        outcomes.append({"name": name, "pairs": int((looked_at.layer >= 0).sum()), "pair": pair, "regret": regret})
    return outcomes


def _layers(evidence: Evidence) -> list[dict[str, Any]]:
    """The data of the completeness figure as rows of a table."""
    scores = evidence.scores
    return [
        {
            "layer": layer,
            "difference": float(scores.difference[layer]),
            "gap": float(scores.gap[layer]),
            "relative": float(scores.relative_error[layer]),
            "nodes": int(scores.nodes[layer]),
            "converged": layer not in scores.unconverged,
        }
        for layer in range(len(scores.nodes))
    ]
