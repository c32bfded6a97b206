"""What `dsm benchmarks ls` shows: every benchmark of the library and of params.yaml, without reading any rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from tasks.benchmarks import library
from tasks.benchmarks.benchmark_spec import BenchmarkSpec, HeldOut
from tasks.pipeline.settings import PARAMS, load_settings

COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("benchmark", "left"),
    ("train", "right"),
    ("test", "right"),
    ("options", "right"),
    ("majority", "right"),
    ("templates", "left"),
    ("licence", "left"),
    ("from", "left"),
)
Line = tuple[str, ...]


def catalogue(root: Path, data: str | None) -> list[list[Line]]:
    """The lines of the library, families folded into one, and those of params.yaml in `root`, if there is one.

    Args:
        data: a directory in which to look for the files of the library's benchmarks, None for none.

    Raises:
        InputError: params.yaml is wrong.
    """
    lines = [_library_line(name, root, data) for name in library.spec_names()]
    if not (root / PARAMS).exists():
        return [lines]
    settings = load_settings(root)
    raw = yaml.safe_load((root / PARAMS).read_text(encoding="utf-8"))["benchmarks"]
    return [lines, [_declared_line(name, spec, raw[name], root) for name, spec in settings.benchmarks.items()]]


def _library_line(family: str, root: Path, data: str | None) -> Line:
    spec = library.read_spec(family)
    names = [f"{family}-{variant}" for variant in spec.variants] or [family]
    found = [name for name in names if data and "local" in spec.sources and not _missing(_paths(name, data), root)]
    # All members of a family come from one kind of source; facts of those that are found, else of all.
    local = data if found else None
    facts = [library.origin(name, field=name, data=local)[2] for name in (found or names)]
    if found:
        where = f"{data}" if len(found) == len(names) else f"{data} ({len(found)} of {len(names)})"
    else:
        where = _origin(names[0], spec)
    return (
        f"{family}-{{{len(names)} {spec.members}}}" if spec.variants else family,
        _span([fact.train for fact in facts]),
        _span([fact.test for fact in facts]),
        spec.choices,
        _span([fact.majority for fact in facts], ".3f"),
        ", ".join(spec.prompts),
        spec.licence,
        where,
    )


def _declared_line(name: str, spec: BenchmarkSpec, raw: dict[str, Any], root: Path) -> Line:
    """`raw` is the entry as it stands in params.yaml, `spec` what it says in full."""
    facts, template = library.Facts(), ""
    if "spec" in raw:
        facts = library.origin(raw["spec"], field=name, kind=raw.get("source"), data=raw.get("data"))[2]
        template = raw.get("template", library.DEFAULT_TEMPLATE)
    if "spec" not in raw or "test" in raw:  # held out of train in a way that no fact is about
        split = spec.test.split if isinstance(spec.test, HeldOut) else None
        facts = library.Facts(test=split if isinstance(split, int) else None)  # of a fraction it is not known
    source = spec.train.source
    if source.kind == "local":
        where = _found(source.paths, root)
    elif source.kind == "path":
        where = _found([source.path], root)
    else:
        where = f"wheel {source.package}" if source.kind == "wheel" else f"hub {source.id}"
    return (
        f"{PARAMS}: {name}",
        _span([facts.train]),
        _span([facts.test]),
        "by row" if isinstance(spec.options, str) else str(len(spec.options)),
        _span([facts.majority], ".3f"),
        template,
        spec.licence,
        where,
    )


def _found(paths: Sequence[str], root: Path) -> str:
    missing = _missing(paths, root)
    return f"{missing} is missing" if missing else paths[0]


def _origin(name: str, spec: library.Spec) -> str:
    kind, origin, _ = library.origin(name, field=name)
    source = origin.train.source
    if kind == "wheel":
        return f"wheel {source['package']}"
    return f"hub {source['id']}" + ("" if source.get("revision") else ", name a revision")


def _paths(name: str, data: str) -> list[str]:
    limits = {"test": 1, "transfer": 0}
    entry: dict[str, Any] = library.expand({"spec": name, "data": data, "limits": limits}, field=name)
    splits = [entry[split] for split in ("train", "test") if "source" in entry[split]]
    return [path for split in splits for path in split["source"]["paths"]]


def _missing(paths: Sequence[str], root: Path) -> str | None:
    """The first of the files that is not there."""
    return next((path for path in paths if not (root / Path(path).expanduser()).is_file()), None)


def _span(values: Sequence[float | None], form: str = ",") -> str:
    """One value, or the smallest to the largest; a question mark where one is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "?"
    ends = [format(end, form) for end in (min(known), max(known))]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
