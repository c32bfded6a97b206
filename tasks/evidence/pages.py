"""docs/studies.md: what each study asks, our tables and plots, and the published ones beside them."""

import shutil
from pathlib import Path
from typing import Any

from tasks.evidence.studies import markdown, table
from tasks.pipeline.cell import Cell
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import read_json, sha256_json, write_text
from tasks.pipeline.settings import Settings
from tasks.pipeline.yamltext import read_yaml

STUDIES = Path(__file__).with_name("studies.yaml")
READINGS = "readings.yaml"  # beside the page
HEAD = f"""# Studies

Made by `dsm studies`; the words under a table are a person's, from [{READINGS}]({READINGS}). ± is one standard error;
p: exact McNemar test against the unpruned model on the same rows. A table marked *published* was measured by the
authors of a paper, on other models: compare the shape, not the numbers."""


def write_page(root: Path, settings: Settings, page: Path) -> int:
    """Writes the page and, in a directory of its name beside it, the plots.

    A reading belongs to the result whose records had its hash; under another result it is left out, and that is said.

    Returns:
        How many results are on it.

    Raises:
        InputError: there is no result yet, or a file of texts is not YAML.
    """
    about = read_yaml(STUDIES.read_text(encoding="utf-8"), field=STUDIES.name)
    texts = page.parent / READINGS
    readings = (read_yaml(texts.read_text(encoding="utf-8"), field=str(texts)) or {}) if texts.exists() else {}
    blocks, count = [HEAD], 0
    for name, what in about.items():
        cells = [
            Cell(root, run.model, run.benchmark, settings) for run in settings.studies.values() if run.study == name
        ]
        cells = [cell for cell in cells if (cell.study(name) / "result.json").exists()]
        if not cells:
            continue
        blocks.append(f"## {what['title']}\n\n{what['question']}")
        for cell in cells:
            blocks += _result(cell, name, page, readings)
            count += 1
        blocks += [f"*Published* ({entry['source']}):\n\n{_rows(entry)}" for entry in what.get("published", ())]
    if not count:
        raise InputError("studies", "none has a result yet: `dsm study NAME` makes one")
    write_text(page, "\n\n".join(blocks) + "\n")
    return count


def _result(cell: Cell, name: str, page: Path, readings: dict[str, Any]) -> list[str]:
    result = read_json(cell.study(name) / "result.json")
    key = f"{name}-{cell.name}"
    plots = page.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(cell.study(name) / "plot.svg", plots / f"{key}.svg")
    settings = {k: v for k, v in result["settings"].items() if k not in ("study", "model", "benchmark")}
    asked = ", ".join(f"{k}: {v}" for k, v in (settings | result["adapted with"]).items())
    command = f"dsm study {name} --model {cell.model} --benchmark {cell.benchmark}"
    blocks = [
        f"### {cell.model} on {cell.benchmark}\n\n`{command}` ({asked}), "
        f"{result['seconds'] / 60:.0f} min on this page's machine.",
        markdown(table(result)),
        f"![{name}]({plots.name}/{key}.svg)",
    ]
    of = fingerprint(result)
    if (reading := readings.get(key)) is not None:
        blocks.append(reading["text"].strip() if reading["of"] == of else f"_(No reading of this result, {of}, yet.)_")
    return blocks


def fingerprint(result: dict[str, Any]) -> str:
    """The first digits of a hash of the values of a result: not of its seconds."""
    return sha256_json([[record["label"], record["value"]] for record in result["records"]])[:8]


def _rows(entry: dict[str, Any]) -> str:
    return markdown([[str(value) for value in row] for row in (entry["header"], *entry["rows"])])
