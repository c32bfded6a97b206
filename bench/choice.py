"""Writes docs/choice-results.md from results of the study `choice`: `python -m bench.choice [data/studies/choice]`.

With a directory, each of its results is first kept as docs/choice/MODEL-BENCHMARK.json; the page is made from those.
The plan, with the rule of the decision, is docs/choice.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from tasks.evidence.study_tables import markdown
from tasks.method.criteria import CRITERIA
from tasks.runtime.files import read_json, write_json, write_text

PAGE, KEPT = Path("docs/choice-results.md"), Path("docs/choice")
DESIGN = ("sst2", "balanced_copa", "openbookqa", "wic")
REPORT = ("cr", "subj", "commonsenseqa", "rotten_tomatoes")
MODELS = ("smollm2-135m-instruct", "gemma-3-270m")  # of which the plan wants every benchmark
PAPER = "paper"
LEVEL = 0.05
MEASURES = ("gain", "harm", "help", "regret", "abstained")
NAMES = [name + how for how in ("", ", abstaining") for name in CRITERIA]


@dataclass(frozen=True)
class Decision:
    """The result of the rule of docs/choice.md.

    Attributes:
        picked: the criterion that is picked on the design half.
        gain, harm: its means over the cells of the report half; `paper_gain` and `paper_harm`, those of the paper's.
        p: of the Wilcoxon signed-rank test of the cells' gains; 1 where the picked one is the paper's.
        replaces: whether it becomes the default.
    """

    picked: str
    gain: float
    harm: float
    paper_gain: float
    paper_harm: float
    p: float
    replaces: bool


def measured(results: list[dict[str, Any]], name: str, measure: str) -> np.ndarray:
    """One measure of one criterion, float64 [cells]."""
    rows = [next(record for record in result["records"] if record["label"] == name) for result in results]
    return np.array([row["more"][measure] for row in rows], dtype=np.float64)


def half(results: list[dict[str, Any]], benchmarks: tuple[str, ...]) -> list[dict[str, Any]]:
    """The results of the cells of these benchmarks."""
    return [result for result in results if result["benchmark"] in benchmarks]


def decide(design: list[dict[str, Any]], report: list[dict[str, Any]]) -> Decision:
    """Picks a criterion on the design half and compares it with the paper's on the report half."""
    limit = measured(design, PAPER, "harm").mean()
    harmless = [name for name in NAMES if measured(design, name, "harm").mean() <= limit + 1e-12]
    picked = max(harmless, key=lambda name: measured(design, name, "gain").mean())
    gains, papers = measured(report, picked, "gain"), measured(report, PAPER, "gain")
    harm, paper_harm = (float(measured(report, name, "harm").mean()) for name in (picked, PAPER))
    p = float(wilcoxon(gains, papers).pvalue) if np.any(gains != papers) else 1.0
    more = float(gains.mean() - papers.mean())
    replaces = picked != PAPER and ((more > 0 and p < LEVEL) or (harm <= paper_harm / 2 and more >= 0))
    return Decision(picked, float(gains.mean()), harm, float(papers.mean()), paper_harm, p, replaces)


def criteria_table(results: list[dict[str, Any]]) -> list[list[str]]:
    """Each criterion with the means of all measures over the cells; standard error between cells for the gain."""
    rows = [["criterion", *MEASURES]]
    for name in NAMES:
        means = [measured(results, name, measure).mean() for measure in MEASURES]
        gains = measured(results, name, "gain")
        error = f" ± {gains.std(ddof=1) / np.sqrt(len(gains)):.3f}" if len(gains) > 1 else ""
        rows.append([name, f"{means[0]:+.3f}{error}", *(f"{mean:.3f}" for mean in means[1:])])
    return rows


def cells_table(results: list[dict[str, Any]], picked: str) -> list[list[str]]:
    """Each cell: the unpruned model, the best pair, and gain and harm of two criteria."""
    columns = [(name, of) for name in dict.fromkeys((PAPER, picked)) for of in ("gain", "harm")]
    rows = [["cell", "n", "unpruned", "best pair", *(f"{name}: {of}" for name, of in columns)]]
    for result in results:
        base, best = result["records"][0], result["records"][-1]
        values = [f"{measured([result], name, of)[0]:{'+.3f' if of == 'gain' else '.3f'}}" for name, of in columns]
        label = f"{result['model']} on {result['benchmark']}"
        rows.append([label, str(base["n"]), f"{base['value']:.3f}", f"{best['value']:.3f}", *values])
    return rows


def page(results: list[dict[str, Any]]) -> str:
    """The page of all results."""
    design, report = half(results, DESIGN), half(results, REPORT)
    parts = [
        "# Selection criteria: results",
        "Made by `python -m bench.choice` from [choice/](choice/), one file for each cell, which `dsm study choice` "
        "writes. The plan, written before, is [choice.md](choice.md): what the criteria are, what gain, harm, help, "
        "regret and abstained mean. Gains are differences of accuracy on test rows, means over 200 draws of ten "
        "labeled rows; ± is the standard error between cells. `search.criterion` offers each criterion, "
        "without abstention.",
    ]
    if design and report:
        decision = decide(design, report)
        parts += ["## Decision", sentence(decision, len(design), len(report))]
        known = {(result["model"], result["benchmark"]) for result in results}
        if missing := [f"{m} on {b}" for b in (*DESIGN, *REPORT) for m in MODELS if (m, b) not in known]:
            parts.append(f"This is provisional: of the cells of the plan, these are missing: {', '.join(missing)}.")
        parts += ["## Cells", markdown(cells_table(results, decision.picked))]
    else:
        absent = "the report half" if design else "the design half"
        parts += ["## Decision", f"None yet: no cell of {absent} has been run. `paper` stays."]
    for title, cells in (("Design half", design), ("Report half", report)):
        if cells:
            parts += [f"## {title}, {len(cells)} cells", markdown(criteria_table(cells))]
    return "\n\n".join(parts) + "\n"


def sentence(decision: Decision, design: int, report: int) -> str:
    """The decision in words."""
    if decision.picked == PAPER:
        return f"On the {design} cells of the design half no criterion with as little harm gains more than `paper`."
    verdict = "It is better by the rule of the plan." if decision.replaces else "By the rule of the plan `paper` stays."
    return (
        f"The {design} cells of the design half pick `{decision.picked}`. "
        f"On the report half it gains {decision.gain:+.3f} and does detectable harm in {decision.harm:.1%} of the "
        f"draws; `paper` gains {decision.paper_gain:+.3f} with {decision.paper_harm:.1%} "
        f"(Wilcoxon signed-rank p = {decision.p:.2g} over {report} cells). {verdict}"
    )


def main() -> None:
    for directory in map(Path, sys.argv[1:]):
        for path in sorted(directory.glob("*/*/result.json")):
            result = read_json(path)
            write_json(KEPT / f"{result['model']}-{result['benchmark']}.json", result)
    order = [*DESIGN, *REPORT]
    results = [read_json(path) for path in sorted(KEPT.glob("*.json"))]
    results.sort(key=lambda result: (result["model"], order.index(result["benchmark"])))
    write_text(PAGE, page(results))


if __name__ == "__main__":
    main()
