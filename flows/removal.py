"""Removes from params.yaml a cell that is no longer wanted, and what a run added that has no result."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.cells import ABSENT, Additions, additions, edited, locked
from flows.yaml_entries import remove_entry
from tasks.pipeline.settings import BENCHMARKS, PARAMS, Settings, load_settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import write_text

ENTRIES = ("pipeline.cells", "studies", "nsa", "sparse")  # each has a stage with a result; names are there for them


@contextmanager
def taken_back_without_result(root: Path) -> Iterator[None]:
    """Removes from params.yaml what the body added without a result, if the body ends with an exception.

    A cell has a result once it is evaluated. Entries that other entries need stay, and so do settings of a result.
    """
    with additions() as added:
        try:
            yield
        except BaseException:
            try:
                _take_back(root, added)
            except (InputError, OSError) as problem:  # the reason why the run ended is worth more
                names = ", ".join(
                    [f"{section}: {name}" for section, name in sorted(added.entries)]
                    + list(map(".".join, added.changed))
                )
                print(f"still in {PARAMS}: {names}, since it cannot be written: {problem}", file=sys.stderr)
            raise


def _take_back(root: Path, added: Additions) -> None:
    if not added.entries and not added.changed:
        return
    with locked(root):
        path = root / PARAMS
        settings = load_settings(root)
        gone = {entry for entry in added.entries if entry[0] in ENTRIES}
        gone |= _unneeded(settings, gone) & added.entries
        if gone == added.entries and added.before is not None and path.read_text(encoding="utf-8") == added.written:
            write_text(path, added.before)  # every byte as it was
        else:
            _remove(root, gone)
            _restore(root, added)


def remove_cell(root: Path, name: str) -> list[str]:
    """Takes a cell out of `pipeline.cells`, and its model and benchmark out of the lists if nothing else needs them.

    Returns:
        What was taken out, such as "pipeline.cells: smol-boolq".

    Raises:
        InputError: there is no such cell, or something else in params.yaml is about it.
    """
    settings = load_settings(root)
    pipeline = settings.pipeline
    if name not in pipeline.cells:
        raise InputError("cell", f"{name!r} is not in pipeline.cells; choose from {sorted(pipeline.cells)}")
    cell = pipeline.cells[name]
    users = [
        f"{section}.{key}"
        for section, runs in (("studies", settings.studies), ("nsa", settings.nsa))
        for key, run in runs.items()
        if (run.model, run.benchmark) == (cell.model, cell.benchmark)
    ]
    users += [
        f"retrain.schedules.{key}"
        for key, schedule in settings.retrain.schedules.items()
        if (schedule.models or schedule.benchmarks) and pipeline.chosen(schedule.models, schedule.benchmarks) == [cell]
    ]
    if users:
        raise InputError(f"pipeline.cells.{name}", f"is needed by {', '.join(users)}; remove that from {PARAMS} first")
    gone = {("pipeline.cells", name)}
    unneeded = {entry for entry in _unneeded(settings, gone) if entry[0] not in ("models", "benchmarks")}
    gone |= unneeded & {("pipeline.models", cell.model), ("pipeline.benchmarks", cell.benchmark)}
    _remove(root, gone)
    return [f"{section}: {entry}" for section, entry in sorted(gone)]


def _unneeded(settings: Settings, gone: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The names in the lists of the pipeline and the declared benchmarks that nothing but `gone` needs."""
    cells = [cell for key, cell in settings.pipeline.cells.items() if ("pipeline.cells", key) not in gone]
    studies = [run for key, run in settings.studies.items() if ("studies", key) not in gone]
    nsa = [run for key, run in settings.nsa.items() if ("nsa", key) not in gone]
    sparse = [run for key, run in settings.sparse.items() if ("sparse", key) not in gone]
    on = {(run.model, run.benchmark) for run in cells}
    on |= {(run.model, run.benchmark) for run in studies} | {(run.model, run.benchmark) for run in nsa}
    models = {model for model, _ in on} | {run.model for run in sparse}
    benchmarks = {benchmark for _, benchmark in on}
    benchmarks |= {other for run in studies for other in run.benchmarks}
    benchmarks |= {run.calibration.removeprefix(BENCHMARKS) for run in sparse}
    unneeded = {("pipeline.models", name) for name in settings.pipeline.models if name not in models}
    unneeded |= {("pipeline.benchmarks", name) for name in settings.pipeline.benchmarks if name not in benchmarks}
    schedules = settings.retrain.schedules.values()
    models |= {name for schedule in schedules for name in schedule.models}
    benchmarks |= {name for schedule in schedules for name in schedule.benchmarks}
    unneeded |= {("models", name) for name in settings.models if name not in models}
    return unneeded | {("benchmarks", name) for name in settings.benchmarks if name not in benchmarks}


def _remove(root: Path, entries: set[tuple[str, str]]) -> None:
    with edited(root) as document:
        for section, name in sorted(entries, key=lambda entry: entry[0] not in ENTRIES):
            place: Any = document
            *parents, last = section.split(".")
            for parent in parents:
                place = place[parent]
            if isinstance(place[last], list):
                place[last].remove(name)
            else:
                remove_entry(place[last], name)
                if not place[last]:
                    place[last] = {}


def _restore(root: Path, added: Additions) -> None:
    """Restores the old values of settings, except of those that somebody else has changed since."""
    with edited(root) as document:
        for way, (old, new) in added.changed.items():
            place: Any = document
            for part in way[:-1]:
                place = place.get(part, {})
            if place.get(way[-1]) != new:
                continue
            if old == ABSENT:
                remove_entry(place, way[-1])
            else:
                place[way[-1]] = old
