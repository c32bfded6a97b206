"""Additions of commands to params.yaml (cells, models, benchmarks, entries of studies, nsa and sparse), and changes.

DVC needs an entry before it can run its stage. So the entry is written first, and removed (`flows.removal`) if the run
ends before the entry has a result.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from flows.yaml_entries import add_entry, flow_style, round_trip
from tasks.pipeline.settings import PARAMS, ListedCell, Settings, parse_settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import write_text


def named_cells(
    settings: Settings, models: Sequence[str] | None, benchmarks: Sequence[str] | None, *, field: str
) -> list[ListedCell]:
    """The cells of the pipeline that have one of these models and one of these benchmarks; all if none are named.

    Raises:
        InputError: naming `field`, if there are names and no cell has them.
    """
    cells = settings.pipeline.chosen(models, benchmarks)
    if not cells and (models or benchmarks):
        named = f"{', '.join(models or ['a model'])} on {', '.join(benchmarks or ['a benchmark'])}"
        raise InputError(field, f"no cell of the pipeline is {named}; the cells are {sorted(settings.pipeline.cells)}")
    return cells


def list_cell(root: Path, model: str, benchmark: str) -> list[str]:
    """Adds the cell of two declared names to `pipeline.cells`, and the names to the lists of the pipeline.

    Returns:
        What was added, such as "pipeline.benchmarks: boolq".

    Raises:
        InputError: another cell has the same name, or the file would be wrong.
    """
    cell = ListedCell(model=model, benchmark=benchmark)
    with edited(root) as document:
        added = _list_names(document, models=[model], benchmarks=[benchmark])
        cells = _section(document["pipeline"], "cells")
        if cell.name not in cells:
            add_entry(cells, cell.name, flow_style(cell.model_dump()))
            added.append(f"pipeline.cells: {cell.name}")
        elif (listed := cells[cell.name]) != cell.model_dump():
            raise InputError(
                f"pipeline.cells.{cell.name}",
                f"is {listed['model']} on {listed['benchmark']}; {model} on {benchmark} would have the same name",
            )
    return added


def list_names(root: Path, *, models: Sequence[str] = (), benchmarks: Sequence[str] = ()) -> list[str]:
    """Adds declared names to the lists of the pipeline that lack them, so that DVC has a stage for each.

    Returns:
        What was added.
    """
    with edited(root) as document:
        return _list_names(document, models=models, benchmarks=benchmarks)


def _list_names(document: Any, *, models: Sequence[str], benchmarks: Sequence[str]) -> list[str]:
    added = []
    for section, names in (("models", models), ("benchmarks", benchmarks)):
        for name in names:
            if name not in document["pipeline"][section]:
                document["pipeline"][section].append(name)
                added.append(f"pipeline.{section}: {name}")
    return added


def list_entry(root: Path, section: str, key: str, entry: dict[str, Any]) -> str:
    """Adds an entry, on one line, to a section of params.yaml that does not have this key.

    Returns:
        What was added.

    Raises:
        InputError: the line would be wrong.
    """
    with edited(root) as document:
        add_entry(_section(document, section), key, flow_style(entry))
    return f"{section}.{key}: {json.dumps(entry, ensure_ascii=False)}"


def _section(document: Any, name: str) -> Any:
    """A mapping of the document to add to: `{}` in the file becomes one of a line per entry."""
    from ruamel.yaml.comments import CommentedMap

    if not document.get(name):
        document[name] = CommentedMap()
    return document[name]


def file_name(file: str, parts: int, *, suffix: bool = False) -> str:
    """A name made of the last parts of a file's path, such as c4-test of c4/test.jsonl; with its suffix where asked."""
    path = Path(file) if suffix else Path(file).with_suffix("")
    return re.sub(r"[^\w-]", "_", "-".join(path.parts[-parts:]), flags=re.ASCII).lstrip("_-")


ABSENT = "(not there)"  # the value of a setting that a command has added


@dataclass
class Additions:
    """Entries and settings that this process added to params.yaml or changed there, and that have no result yet.

    Attributes:
        entries: as (section, name).
        changed: for each changed setting, by its place, the old and the new value.
        before: the text before the first addition.
        written: the one after the last; None if somebody else has written in between.
        outer: the additions of the context around this one.
    """

    entries: set[tuple[str, str]] = field(default_factory=set)
    changed: dict[tuple[str, ...], tuple[Any, Any]] = field(default_factory=dict)
    before: str | None = None
    written: str | None = None
    outer: "Additions | None" = None


_additions: Additions | None = None  # of the innermost context: a process runs one command


@contextmanager
def additions() -> Iterator[Additions]:
    """Records what `edited` adds and changes until the body ends, except what a nested context records."""
    global _additions
    outer = _additions
    _additions = Additions(outer=outer)
    try:
        yield _additions
    finally:
        _additions = outer


def has_result(section: str, name: str) -> None:
    """Records that an entry has a result: it and all settings stay, even if the run that added them fails."""
    if _additions is not None:
        _additions.entries.discard((section, name))
    noted = _additions
    while noted is not None:
        noted.changed.clear()
        noted = noted.outer


@contextmanager
def edited(root: Path) -> Iterator[Any]:
    """The document of params.yaml; what was changed in it is checked and written at the end, comments as they were."""
    yaml = round_trip()
    with locked(root):  # of two runs that start at once, neither loses the other's name
        before = (root / PARAMS).read_text(encoding="utf-8")
        document = yaml.load(before)
        unchanged, named = io.StringIO(), _entries(document)
        yaml.dump(document, unchanged)
        if document["pipeline"].get("cells") is None:  # a file of the time before the list, which dvc.yaml needs
            cells = _section(document["pipeline"], "cells")
            for name, cell in parse_settings(before).pipeline.cells.items():
                add_entry(cells, name, flow_style(cell.model_dump()))
        yield document
        text = io.StringIO()
        yaml.dump(document, text)
        if text.getvalue() != unchanged.getvalue():
            parse_settings(text.getvalue())  # refuses what would be wrong before anything is written
            write_text(root / PARAMS, text.getvalue())
            _note(_entries(document) - named, _changes(yaml.load(before), document), before, text.getvalue())


def unwritten(root: Path, change: Callable[[Any], None]) -> Settings:
    """The settings that params.yaml would hold after this change of its document. Nothing is written.

    Raises:
        InputError: the changed file would be wrong.
    """
    yaml, text = round_trip(), io.StringIO()
    document = yaml.load((root / PARAMS).read_text(encoding="utf-8"))
    change(document)
    yaml.dump(document, text)
    return parse_settings(text.getvalue())


def locked(root: Path) -> FileLock:
    """The lock that a writer of params.yaml holds."""
    scratch = root / "data" / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return FileLock(scratch / f"{PARAMS}.lock", is_singleton=True)  # who holds it may edit


def _note(
    added: set[tuple[str, str]], changed: dict[tuple[str, ...], tuple[Any, Any]], before: str, written: str
) -> None:
    if _additions is None:
        return
    if _additions.before is None:
        _additions.before, _additions.written = before, written
    else:
        _additions.written = written if _additions.written == before else None
    _additions.entries |= added
    for place, (old, new) in changed.items():
        first = _additions.changed.get(place, (old, new))[0]
        _additions.changed[place] = (first, new)


SECTIONS = ("studies", "nsa", "sparse", "models", "benchmarks")  # whose entries commands add


def _entries(document: Any) -> set[tuple[str, str]]:
    """The names in every section that a command may add to."""
    places = [(f"pipeline.{name}", document["pipeline"].get(name)) for name in ("models", "benchmarks", "cells")]
    places += [(name, document.get(name)) for name in SECTIONS]
    return {(section, name) for section, names in places for name in names or ()}


def _changes(before: Any, after: Any, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """The values that differ between two documents. Entries that only one of them has do not count."""
    changes: dict[tuple[str, ...], tuple[Any, Any]] = {}
    for key, new in after.items():
        inner, old = (*place, str(key)), before.get(key, ABSENT)
        if inner == ("pipeline",) or (len(inner) == 2 and place[0] in SECTIONS and old == ABSENT):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes |= _changes(old, new, inner)
        elif old != new and not (place == () and key in SECTIONS):
            changes[inner] = (old, new)
    return changes
