"""study: one of the experiments of tasks/studies on one cell."""

import re
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from safetensors.numpy import save_file

from tasks.evidence.study_tables import plot
from tasks.method.recipe import Recipe
from tasks.models.hashing import recorded_hash
from tasks.pipeline.cell import Cell
from tasks.pipeline.runs import StudyRun
from tasks.pipeline.settings import Settings
from tasks.pipeline.step import run_step
from tasks.pipeline.study_inputs import benchmark_hash, check_inputs
from tasks.runtime.errors import InputError
from tasks.runtime.files import replacing, sha256_file, write_json, write_text
from tasks.runtime.journal import Journal, journal_key
from tasks.runtime.progress import progress
from tasks.runtime.work import WorkerPool, run_parts, worker_pool
from tasks.studies.catalogue import STUDIES
from tasks.studies.context import Record, StudyContext
from tasks.studies.joint import HeldOutResults, HeldOutRows, Part, evaluate


def study(cell: Cell, name: str) -> None:
    """Writes data/studies/<study>/<model>/<benchmark>/: result.json, plot.svg, for some studies arrays.safetensors.

    Studies that adapt anew also write recipes/, the recipe of each adaptation by its label.
    Unlike other outputs it holds durations, so the bytes differ between runs.
    """
    run = _run(cell, name)
    definition = STUDIES[name]
    settings = cell.settings
    check_inputs(run, settings, cell.root)
    inputs = [
        run.model_dump(),
        *(section.model_dump() for section in (settings.adaptation, settings.attribution, settings.search)),
        settings.evaluation.model_dump(),
        settings.precision.search,
        settings.precision.evaluate,
        benchmark_hash(cell.benchmark_spec, cell.root, field=cell.benchmark),
        recorded_hash(cell.model_dir),
        *map(sha256_file, (cell.train, cell.test, cell.samples, cell.unlabeled)),
        *map(sha256_file, (cell.scores, cell.pruned, cell.transfer)),
    ]
    journal = Journal(cell.scratch / f"study-{name}.jsonl", journal_key(inputs))
    with worker_pool(partial(Worker, cell, run)) as workers:
        parts = workers.attribute("parts")
        with progress(name, len(parts)) as advance:
            values = run_parts(workers, parts, journal, advance)
        given = [record for value in values.values() for record in value["records"]]
        if definition.evaluate is None:
            records, further = definition.finish(given, run, settings.search), 0.0
        else:
            started = time.monotonic()
            records = definition.evaluate(given, partial(_on_test_rows, workers, journal, settings))
            further = time.monotonic() - started
    result = {
        "study": name,
        "model": cell.model,
        "benchmark": cell.benchmark,
        "unit": definition.unit,
        "settings": run.model_dump(exclude_unset=True, exclude={"inputs"}),
        "adapted with": _changed(settings),
        "seconds": round(sum(value["seconds"] for value in values.values()) + further, 1),
        "records": [record.as_json() for record in records],
    }
    with replacing(cell.study(name)) as target:
        target.mkdir()
        write_json(target / "result.json", result)
        write_text(target / "plot.svg", plot(result, x=definition.x))
        if definition.arrays is not None:
            save_file(definition.arrays(given), target / "arrays.safetensors")
        if recipes := {_file_name(value["label"]): value["recipe"] for value in given if "recipe" in value}:
            (target / "recipes").mkdir()
            for label, recipe in recipes.items():
                write_json(target / "recipes" / f"{label}.json", recipe)
    journal.remove()


def _file_name(label: str) -> str:
    """`10 examples, seed 0` as `10-examples-seed-0`."""
    return "-".join(re.findall(r"[a-z0-9]+", label.lower()))


def _on_test_rows(
    workers: WorkerPool, journal: Journal, settings: Settings, recipes: Sequence[Recipe]
) -> list[HeldOutResults]:
    packs = workers.attribute("packs")
    with progress("test rows", packs[0] * len({recipe.projection for recipe in recipes})) as advance:
        run = partial(run_parts, workers, journal=journal)
        return evaluate(run, packs, recipes, settings.precision.evaluate, advance)


def _changed(settings: Settings) -> dict[str, Any]:
    """The settings of the adaptation that are not defaults, and the fractions of the grid."""
    sections = (settings.adaptation, settings.attribution, settings.search)
    return {key: value for section in sections for key, value in section.model_dump(exclude_defaults=True).items()}


def _run(cell: Cell, name: str) -> StudyRun:
    key = f"{name}-{cell.name}"
    if key not in cell.settings.studies:
        raise InputError("studies", f"{key!r} is not in params.yaml: `dsm study` adds it")
    return cell.settings.studies[key]


class Worker:
    """Computes the parts of a study (`tasks.runtime.work`)."""

    def __init__(self, cell: Cell, run: StudyRun):
        self._context = StudyContext(cell, run)
        self._study = STUDIES[run.study]
        self._held_out = HeldOutRows(self._context)

    @property
    def parts(self) -> list[str]:
        return self._study.parts(self._context)

    @property
    def packs(self) -> tuple[int, int]:
        return self._held_out.packs

    def compute(self, part: str | Part) -> dict[str, Any]:
        if isinstance(part, Part):
            return self._held_out.compute(part)
        started = time.monotonic()
        results = self._study.compute(self._context, part)
        records = [one.as_json() if isinstance(one, Record) else one for one in results]
        return {"records": records, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    run_step(study, description=__doc__, argument="study")
