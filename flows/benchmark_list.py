"""What `dsm benchmarks ls` shows: every benchmark of the library and of params.yaml, without reading any rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.tables import Column
from tasks.benchmarks import library
from tasks.benchmarks.benchmark_spec import BenchmarkSpec, HeldOut
from tasks.pipeline.settings import PARAMS, load_settings
from tasks.runtime.errors import InputError

COLUMNS = (
    Column("benchmark"),
    Column("train", "right"),
    Column("test", "right"),
    Column("from", least=20),
    Column("options", "right", optional=True),
    Column("majority", "right", optional=True),
    Column("templates", optional=True),
    Column("licence", optional=True, least=20),
)
PAGE_COLUMNS = ("Benchmark", "Family", "Options", "Rows from", "Train", "Test", "Majority", "Licence")
Line = tuple[str, ...]  # the name, the family, and the other columns


def catalogue(root: Path, data: str | None, family: str | None = None) -> list[list[Line]]:
    """The lines of the library by family, groups folded into one, and those of params.yaml in `root`, if there is one.

    Args:
        data: a directory in which to look for the files of the library's benchmarks, None for none.
        family: of tasks; only its benchmarks. One that params.yaml spells out in full is in no family.

    Raises:
        InputError: params.yaml is wrong, or there is no such family.
    """
    lines = [_library_line(name, root, data) for name in _by_family(family)]
    if not (root / PARAMS).exists():
        return [lines]
    settings = load_settings(root)
    raw = yaml.safe_load((root / PARAMS).read_text(encoding="utf-8"))["benchmarks"]
    declared = [_declared_line(name, spec, raw[name], root) for name, spec in settings.benchmarks.items()]
    return [lines, [line for line in declared if family in (None, line[1])]]


def page_table(family: str | None = None) -> str:
    """The library as a Markdown table: one line a group or benchmark, with all its sources, by family.

    Raises:
        InputError: there is no such family.
    """
    lines: list[Line] = [PAGE_COLUMNS, ("---", "---", "---:", "---", "---:", "---:", "---:", "---")]
    lines += map(_page_line, _by_family(family))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_family(family: str | None) -> list[str]:
    if family is not None and family not in library.FAMILIES:
        raise InputError("family", f"must be one of {', '.join(map(repr, library.FAMILIES))}, not {family!r}")
    names = [name for name in library.spec_names() if family in (None, library.read_spec(name).family)]
    return sorted(names, key=lambda name: library.FAMILIES.index(library.read_spec(name).family))


def _members(name: str, spec: library.Spec) -> list[str]:
    return [f"{name}-{variant}" for variant in spec.variants] or [name]


def _title(name: str, spec: library.Spec) -> str:
    return f"{name}-{{{len(spec.variants)} {spec.members}}}" if spec.variants else name


def _page_line(name: str) -> Line:
    spec, members = library.read_spec(name), _members(name, library.read_spec(name))
    by_member = [library.facts(member) for member in members]
    kinds: list[library.Kind] = [kind for kind in ("wheel", "hub", "local") if kind in spec.sources]
    facts = {kind: [one[kind] for one in by_member if kind in one] for kind in kinds}

    def by_source(values: Iterable[str]) -> str:
        return "<br>".join(values)

    return (
        f"`{_title(name, spec)}`",
        spec.family,
        spec.choices,
        by_source(_from(spec, kind) for kind in kinds),
        by_source(_span([fact.train for fact in facts[kind]]) for kind in kinds),
        by_source(_span([fact.test for fact in facts[kind]]) for kind in kinds),
        by_source(_span([fact.majority for fact in facts[kind]], ".3f") for kind in kinds),
        spec.licence,
    )


def _library_line(name: str, root: Path, data: str | None) -> Line:
    spec = library.read_spec(name)
    members = _members(name, spec)
    available = [one for one in members if data and "local" in spec.sources and not _missing(_paths(one, data), root)]
    # All members of a group come from one kind of source. Facts of the available members, or of all if there are none.
    kind = "local" if available else next(kind for kind in ("wheel", "hub", "local") if kind in spec.sources)
    facts = [library.facts(one)[kind] for one in (available or members)]
    if available:
        where = f"{data}" if len(available) == len(members) else f"{data} ({len(available)} of {len(members)})"
    else:
        where = _from(spec, kind)
    return (
        _title(name, spec),
        spec.family,
        _span([fact.train for fact in facts]),
        _span([fact.test for fact in facts]),
        where,
        spec.choices,
        _span([fact.majority for fact in facts], ".3f"),
        ", ".join(spec.prompts),
        spec.licence,
    )


def _declared_line(name: str, spec: BenchmarkSpec, raw: dict[str, Any], root: Path) -> Line:
    """`raw` is the entry in params.yaml, `spec` the full entry."""
    facts, template, family = library.Facts(), "", ""
    if "spec" in raw:
        facts = library.origin(raw["spec"], field=name, kind=raw.get("source"), data=raw.get("data"))[2]
        template = raw.get("template", library.DEFAULT_TEMPLATE)
        family = library.member(raw["spec"], field=name)[0].family
    if "spec" not in raw or "test" in raw:  # held out of train in a way that no fact is about
        split = spec.test.split if isinstance(spec.test, HeldOut) else None
        facts = library.Facts(test=split if isinstance(split, int) else None)  # of a fraction it is not known
    source = spec.train.source
    if source.kind == "local":
        where = _local_source(source.paths, root)
    elif source.kind == "path":
        where = _local_source([source.path], root)
    else:
        where = f"wheel {source.package}" if source.kind == "wheel" else f"hub {source.id}"
    return (
        f"{PARAMS}: {name}",
        family,
        _span([facts.train]),
        _span([facts.test]),
        where,
        "by row" if isinstance(spec.options, str) else str(len(spec.options)),
        _span([facts.majority], ".3f"),
        template,
        spec.licence,
    )


def _local_source(paths: Sequence[str], root: Path) -> str:
    missing = _missing(paths, root)
    return f"{missing} is missing" if missing else paths[0]


def _from(spec: library.Spec, kind: library.Kind) -> str:
    """Where the test rows come from; of rows that are held out of train, the train rows."""
    origin = spec.sources[kind]
    source = (origin.test if isinstance(origin.test, library.OriginRows) else origin.train).source
    if kind == "wheel":
        return f"wheel {source['package']}"
    if kind == "local":
        return f"local {source['paths'][0].partition('/')[0]}/"
    return f"hub {source['id']}" + ("" if source.get("revision") else ", name a revision")


def _paths(name: str, data: str) -> list[str]:
    limits = {"test": 1, "transfer": 0}
    entry: dict[str, Any] = library.expand({"spec": name, "data": data, "limits": limits}, field=name)
    splits = [entry[split] for split in ("train", "test") if "source" in entry[split]]
    return [path for split in splits for path in split["source"]["paths"]]


def _missing(paths: Sequence[str], root: Path) -> str | None:
    """The first of the files that is missing."""
    return next((path for path in paths if not (root / Path(path).expanduser()).is_file()), None)


def _span(values: Sequence[float | None], form: str = ",") -> str:
    """One value, or the smallest to the largest; a question mark where one is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "?"
    ends = [format(end, form) for end in (min(known), max(known))]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
