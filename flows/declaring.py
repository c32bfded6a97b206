"""Adds the models, benchmarks and settings of a command line to params.yaml: all of them, or nothing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.cells import edited, unwritten
from flows.stages import steps_that_read
from flows.yaml_entries import add_entry, block, flow_style
from tasks.pipeline.cell import Cell, open_cell
from tasks.pipeline.settings import Settings, load_settings
from tasks.pipeline.wanted import Wanted, wanted_benchmark, wanted_model
from tasks.runtime.errors import InputError
from tasks.runtime.yamltext import read_yaml


@dataclass(frozen=True)
class Asked:
    """What the options of a command ask for.

    Attributes:
        models: names, directories, GGUF files, hub ids.
        benchmarks: names, files of rows.
        data: the directory with the files of benchmarks of the library.
        limit: test rows.
        seed: of the adaptation set.
        changes: settings, each as "attribution.max_nodes=8".
    """

    models: Sequence[str] = ()
    benchmarks: Sequence[str] = ()
    data: str | None = None
    limit: int | None = None
    seed: int | None = None
    changes: Sequence[str] = ()


@dataclass(frozen=True)
class Declared:
    """The declared names that the options stand for, and what was recognised, added and changed, line by line."""

    models: list[str]
    benchmarks: list[str]
    notes: list[str] = field(default_factory=list)


def asked_for(
    root: Path,
    models: Sequence[str],
    benchmarks: Sequence[str],
    data: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    changes: Sequence[str] = (),
) -> Asked:
    """The options of `dsm run` and `dsm plan`. A limit without a benchmark is for the benchmark of the first cell.

    Raises:
        InputError: `data` without a benchmark.
    """
    if data is not None and not benchmarks:
        raise InputError("data", "is for a benchmark that is taken from the library; name it with --benchmark")
    if limit is not None and not benchmarks:
        known = models[0] if models and models[0] in load_settings(root).models else None
        benchmarks = [open_cell(known, root=root).benchmark]
    return Asked(models, benchmarks, data, limit, seed, changes)


def declare(root: Path, asked: Asked) -> Declared:
    """Adds to params.yaml what the options name and it lacks, pinned, and changes the settings.

    Nothing is written unless all of it is right.

    Raises:
        InputError: an option names nothing, or a setting is unknown or has a wrong value.
    """
    edit = _Edit(root, asked)
    with edited(root) as document:
        notes = edit.apply(document)
    return Declared(*edit.names, notes)


def preview(root: Path, asked: Asked) -> tuple[Cell, set[str], list[str]]:
    """The cell that `declare` would make of the options of one run. Nothing is written.

    Returns:
        The cell, which of its steps read what would change in params.yaml, and what the run would add and change, line
        by line.

    Raises:
        InputError: as `declare`.
    """
    edit = _Edit(root, asked)
    notes: list[str] = []

    def change(document: Any) -> None:
        notes.extend(edit.apply(document, will="`dsm run` "))

    settings = unwritten(root, change)
    models, benchmarks = edit.names
    cell = open_cell(models[0] if models else None, benchmarks[0] if benchmarks else None, root, settings)
    return cell, steps_that_read(edit.settings, settings, cell.model, cell.benchmark, root), notes


class _Edit:
    """What the options of a command change in params.yaml."""

    def __init__(self, root: Path, asked: Asked):
        self.settings, self._limit = load_settings(root), asked.limit
        self._models, self._benchmarks = _wanted(asked, self.settings, root)
        self._changes = [(way, value) for way, value in map(parse_change, asked.changes)]
        for way, _ in self._changes:
            _check_setting(self.settings, way)
        if asked.seed is not None:
            self._changes.append((["adaptation", "seed"], asked.seed))

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Of the models and of the benchmarks, in params.yaml."""
        return [wanted.name for wanted in self._models], [wanted.name for wanted in self._benchmarks]

    def apply(self, document: Any, *, will: str = "") -> list[str]:
        """Changes the document, and says what, line by line; `will` goes before it where it is not written yet."""
        notes: list[str] = []
        for section, named in (("models", self._models), ("benchmarks", self._benchmarks)):
            for wanted in named:
                notes += wanted.notes
                notes += _add(document[section], section, wanted, verb=f"{will}adds" if will else "added")
        for way, value in [*self._limits(document), *self._changes]:
            notes += _change(document, way, value, verb=f"{will}changes" if will else "changed")
        return notes

    def _limits(self, document: Any) -> Iterator[tuple[list[str], int]]:
        """The changes that `limit` means for benchmarks that are declared already."""
        if (limit := self._limit) is None:
            return
        for name in (wanted.name for wanted in self._benchmarks if wanted.entry is None):
            limits = document["benchmarks"][name].get("limits") or {}
            yield ["benchmarks", name, "limits", "test"], limit
            transfer = limits.get("transfer") if isinstance(limits, dict) else None
            if isinstance(transfer, int) and transfer > limit:
                yield ["benchmarks", name, "limits", "transfer"], max(limit, 0)


def _wanted(asked: Asked, settings: Settings, root: Path) -> tuple[list[Wanted], list[Wanted]]:
    """The models and the benchmarks that the options name."""
    models: list[Wanted] = []
    for text in asked.models:
        models.append(wanted_model(text, settings, root, [wanted.name for wanted in models if wanted.entry]))
    benchmarks: list[Wanted] = []
    for text in asked.benchmarks:
        taken = [wanted.name for wanted in benchmarks if wanted.entry]
        wanted = wanted_benchmark(text, settings, root, data=asked.data, taken=taken)
        benchmarks.append(_limited(wanted, asked.limit))
    return models, benchmarks


def _limited(wanted: Wanted, limit: int | None) -> Wanted:
    """The benchmark with this limit of test rows if it is new; else as it is."""
    if limit is None or wanted.entry is None:
        return wanted
    transfer = min(wanted.entry["limits"]["transfer"], max(limit, 0))
    return replace(wanted, entry=wanted.entry | {"limits": {"test": limit, "transfer": transfer}})


def _add(section: Any, place: str, wanted: Wanted, *, verb: str) -> list[str]:
    for way, value in wanted.pins.items():
        holder = section[wanted.name]
        for part in way[:-1]:
            holder = holder[part]
        holder[way[-1]] = value
    if wanted.entry is None or wanted.name in section:  # named twice
        return []
    short = "spec" in wanted.entry
    add_entry(section, wanted.name, flow_style(wanted.entry) if short else block(wanted.entry, wanted.comment))
    # The notes have what was guessed. The entry itself is long, and better read in the file.
    what = "" if wanted.notes else f": {json.dumps(wanted.entry, ensure_ascii=False)}"
    return [f"{verb} to params.yaml: {place}.{wanted.name}{what}"]


# -- settings ---------------------------------------------------------------------------------------------------------


def parse_change(text: str) -> tuple[list[str], Any]:
    """The place and the value of "attribution.max_nodes=8"; the value is read as YAML.

    Raises:
        InputError: there is no place, or the value is no YAML.
    """
    way, sign, value = text.partition("=")
    parts = way.strip().split(".")
    if not sign or len(parts) < 2 or not all(parts):
        raise InputError("set", f"must be FIELD=VALUE, such as attribution.max_nodes=8, not {text!r}")
    if parts[0] == "pipeline":
        raise InputError(
            "set", "cannot change the lists of the pipeline; `dsm run` adds a cell, and `dsm rm` removes it"
        )
    return parts, read_yaml(value, field=f"set {way.strip()}")


def _check_setting(settings: Settings, way: list[str]) -> None:
    """Refuses an unknown field; the message lists the known ones. Values are checked later, with the whole file."""
    place: Any = settings
    for number, part in enumerate(way):
        if isinstance(place, BaseModel):
            known = list(type(place).model_fields)
        elif isinstance(place, dict):
            known = list(place)
        else:
            raise InputError("set", f"{'.'.join(way[:number])} has no fields")
        if part not in known:
            raise InputError(
                "set", f"{'.'.join(way[: number + 1])} is not a setting; choose from {', '.join(sorted(known))}"
            )
        place = place[part] if isinstance(place, dict) else getattr(place, part)
        if way[0] == "benchmarks" and number == 1:  # a line of the library has other fields than what it stands for
            return


def _change(document: Any, way: list[str], value: Any, *, verb: str) -> list[str]:
    place = document
    for part in way[:-1]:
        if not isinstance(place.get(part), dict):
            place[part] = flow_style({})
        place = place[part]
    before = place.get(way[-1])
    if before == value and way[-1] in place:
        return []
    place[way[-1]] = flow_style(value)
    was = "" if before is None else f" (it was {json.dumps(before, default=str)})"
    return [f"{verb} in params.yaml: {'.'.join(way)}: {json.dumps(value, default=str)}{was}"]
