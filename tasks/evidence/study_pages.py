"""docs/studies.md: what each study asks, our tables and plots, and the published ones beside them."""

import shutil
from pathlib import Path
from typing import Any

from tasks.evidence.study_tables import markdown, table
from tasks.pipeline.cell import Cell
from tasks.pipeline.settings import Settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, sha256_json, write_text
from tasks.runtime.yamltext import read_yaml

STUDIES = Path(__file__).with_name("studies.yaml")
READINGS = "readings.yaml"  # beside the page
HEAD = f"""# Studies

Made by `dsm studies`; the comments under the tables are written by hand ([{READINGS}]({READINGS})). ± is one standard
error of that system alone, as in the plots; p shows whether two systems differ on the same rows (exact McNemar test
against the unpruned model). A table marked *published* was measured by the authors of a paper, on other models:
compare the shape, not the numbers."""

OTHER = "of no family"
BY_FAMILY = """The mean accuracy over the calibration sets, followed by the spread: the largest minus the smallest.
There is no spread where there is one set or none. The families are those of 2503.01542."""


def write_page(root: Path, settings: Settings, page: Path) -> int:
    """Writes the page, and the plots into a directory with the page's name beside it.

    A reading (a person's comment on a result) carries the hash of the records it is about. If the result has changed
    since, the page says that there is no reading of it.

    Returns:
        The number of results on the page.

    Raises:
        InputError: there is no result yet, the page that is there has results that this project does not have, or a
            file of texts is not YAML.
    """
    about = read_yaml(STUDIES.read_text(encoding="utf-8"), field=STUDIES.name)
    texts = page.parent / READINGS
    readings = (read_yaml(texts.read_text(encoding="utf-8"), field=str(texts)) or {}) if texts.exists() else {}
    blocks, plots = [HEAD], page.with_suffix("")
    shown: list[tuple[str, Cell]] = []
    count = 0
    for name, what in about.items():
        if name == "nsa":
            meanings, number = _meanings(root, settings, readings)
            count += number
            blocks += [f"## {what['title']}\n\n{what['question']}", *meanings] if meanings else []
            continue
        cells = [
            Cell(root, run.model, run.benchmark, settings) for run in settings.studies.values() if run.study == name
        ]
        cells = [cell for cell in cells if (cell.study(name) / "result.json").exists()]
        if not cells:
            continue
        blocks.append(f"## {what['title']}\n\n{what['question']}")
        for cell in cells:
            blocks += _result(cell, name, plots.name, readings)
            shown.append((name, cell))
        if "families" in what:
            results = [read_json(cell.study(name) / "result.json") for cell in cells]
            blocks.append(f"### By family of tasks\n\n{BY_FAMILY}\n\n{markdown(by_family(results, what['families']))}")
        blocks += [f"*Published* ({entry['source']}):\n\n{_rows(entry)}" for entry in what.get("published", ())]
    count += len(shown)
    if not count:
        raise InputError("studies", "none has a result yet: `dsm study NAME` makes one")
    text = "\n\n".join(blocks) + "\n"
    lost = _cells(page.read_text(encoding="utf-8")) - _cells(text) if page.exists() else set()
    if lost:
        title, cell_name = min(lost)
        raise InputError(
            str(page),
            f"has {len(lost)} results that are not here, such as {title} of {cell_name}: fetch them (`dvc pull`), "
            "remove the page, or write another one (--page)",
        )
    for name, cell in shown:
        plots.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cell.study(name) / "plot.svg", plots / f"{name}-{cell.name}.svg")
    write_text(page, text)
    return count


def _cells(page: str) -> set[tuple[str, str]]:
    """The results on a page: the title of the study, and model and benchmark."""
    title, results = "", set()
    for line in page.splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("### ") and " on " in line:
            results.add((title, line[4:]))
    return results


def _result(cell: Cell, name: str, plots: str, readings: dict[str, Any]) -> list[str]:
    result = read_json(cell.study(name) / "result.json")
    key = f"{name}-{cell.name}"
    minutes = f"{result['seconds'] / 60:.0f} min" if result["seconds"] >= 30 else "less than a minute"
    settings = {k: v for k, v in result["settings"].items() if k not in ("study", "model", "benchmark")}
    asked = ", ".join(f"{k}: {v}" for k, v in (settings | result["adapted with"]).items())
    command = f"dsm study {name} --model {cell.model} --benchmark {cell.benchmark}"
    blocks = [
        f"### {cell.model} on {cell.benchmark}\n\n`{command}` ({asked}), {minutes} on this page's machine.",
        markdown(table(result)),
        f"![{name}]({plots}/{key}.svg)",
    ]
    return blocks + _reading(key, fingerprint(result), readings)


def _reading(key: str, of: str, readings: dict[str, Any]) -> list[str]:
    if (reading := readings.get(key)) is None:
        return []
    return [reading["text"].strip() if reading["of"] == of else f"_(No reading of this result, {of}, yet.)_"]


def fingerprint(result: dict[str, Any]) -> str:
    """The first digits of a hash over the values of a result, without its seconds."""
    return sha256_json([[record["label"], record["value"]] for record in result["records"]])[:8]


def by_family(results: list[dict[str, Any]], families: dict[str, list[str]]) -> list[list[str]]:
    """Results of study `calibration` as one table: method x sparsity by benchmark, the benchmarks by family.

    Args:
        results: of one model or several, each on one benchmark.
        families: for each family, names of benchmarks or their part before a hyphen.
    """
    columns = sorted(
        ((_family(r["benchmark"], families), r) for r in results), key=lambda c: [*families, OTHER].index(c[0])
    )
    several = len({r["model"] for r in results}) > 1
    values: dict[str, dict[int, list[float]]] = {}
    for i, (_, result) in enumerate(columns):
        for record in result["records"]:
            more = record["more"]
            part = f", {more['sparsity']:.0%}" if more.get("sparsity") else ""
            kind = f"{more['method']}{part}" if "method" in more else record["label"]
            values.setdefault(kind, {}).setdefault(i, []).append(record["value"])
    benchmarks = [f"{r['model']}, {r['benchmark']}" if several else r["benchmark"] for _, r in columns]
    header = ["", *(f"{name} ({family})" for name, (family, _) in zip(benchmarks, columns, strict=True))]
    return [
        header,
        *([kind, *(_mean(by_column.get(i, [])) for i in range(len(columns)))] for kind, by_column in values.items()),
    ]


def _family(benchmark: str, families: dict[str, list[str]]) -> str:
    """The first family that has the benchmark; a user's own benchmark may have none."""
    for family, names in families.items():
        if any(benchmark == name or benchmark.startswith(f"{name}-") for name in names):
            return family
    return OTHER


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f", {max(values) - min(values):.3f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{spread}"


def _meanings(root: Path, settings: Settings, readings: dict[str, Any]) -> tuple[list[str], int]:
    """The blocks of the cells that have a neuron semantic attribution, and the number of these cells."""
    blocks: list[str] = []
    count = 0
    for run in settings.nsa.values():
        cell = Cell(root, run.model, run.benchmark, settings)
        if not (cell.directory / "nsa.json").exists():
            continue
        nsa = read_json(cell.directory / "nsa.json")
        command = f"dsm explain --nsa --model {cell.model} --benchmark {cell.benchmark}"
        stability = nsa["stability"]
        blocks += [
            f"### {cell.model} on {cell.benchmark}\n\n`{command}` (rows: {nsa['rows']}, "
            f"by: {nsa['settings']['by']}). {nsa['pruned']} of {nsa['width']} neurons of layer {nsa['layer']} "
            f"are pruned; {len(nsa['words'])} influential words. Halves of the rows order the words of a neuron "
            f"alike with Spearman {stability['mean']:.2f}, the mean of {len(stability['splits'])} splits.",
            markdown(meanings_table(nsa)),
            *_reading(f"nsa-{cell.name}", sha256_json(nsa["systems"])[:8], readings),
        ]
        count += 1
    return blocks, count


def meanings_table(result: dict[str, Any]) -> list[list[str]]:
    """The table of nsa.json: for each way of pruning the mean drop, its permutation test, and the collapsed pairs."""
    rows = [["", "mean drop, influential words", "random words", "p (permutation)", "collapsed pairs", "polysemantic"]]
    rows.append(["unpruned", "", "", "", "", str(sum(result["polysemantic"]))])
    for name, system in result["systems"].items():
        test = system["permutation"]
        collapsed = sum(system["collapsed"]) / len(system["collapsed"])
        rows.append(
            [result["names"][name], f"{test['mean']:.4f}", f"{test['random']:.4f}", f"{test['p']:.2f}",
             f"{collapsed:.2%}", str(sum(system["polysemantic"]))]
        )  # fmt: skip
    return rows


def _rows(entry: dict[str, Any]) -> str:
    return markdown([[str(value) for value in row] for row in (entry["header"], *entry["rows"])])
