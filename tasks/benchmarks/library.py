"""The library of benchmarks: one YAML file each in `specs`. An entry of params.yaml that names one is expanded to it.

A file may describe a group: its `variants` give values for `$name` in its strings, and `<file>-<variant>` is a
benchmark. If the value is a list (the subjects of a domain), the list item with `$name` is repeated.
"""

import difflib
import functools
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from tasks.benchmarks.benchmark_spec import ANY
from tasks.runtime.errors import InputError
from tasks.runtime.fields import Strict

SPECS = Path(__file__).parent / "specs"
DEFAULT_TEMPLATE = "sadi"

Kind = Literal["wheel", "hub", "local"]
Family = Literal["sentiment", "question answering", "similarity", "reasoning"]  # of tasks, as in arXiv 2503.01542
FAMILIES: tuple[Family, ...] = get_args(Family)


class Facts(Strict):
    """Published facts about the rows of a source, before repeated prompts are dropped; None where not known.

    `train` and `test` are numbers of rows; `majority` is the share of the most frequent gold option in test (in both
    splits if test is held out of train).
    """

    train: int | None = None
    test: int | None = None
    majority: float | None = Field(default=None, gt=0, le=1)


class Prompt(Strict):
    """One template of a benchmark: `prompt` and `options` as in params.yaml."""

    prompt: str
    options: list[str] | str


class OriginRows(Strict):
    """One split from one source: `source` without its kind; the other fields replace those of the file."""

    source: dict[str, Any]
    where: dict[str, list[Any]] = Field(default={})
    fields: dict[str, str] | None = None
    gold: str | None = None
    labels: list[str] | str | None = None


class Origin(Strict):
    """The sources of both splits; `test` may be held out of train. `facts` become `Facts`."""

    train: OriginRows
    test: OriginRows | dict[str, Any]
    facts: dict[str, Any]


class Variant(Strict):
    """One member of a group; its `sources` replace those of the group."""

    values: dict[str, str | list[str]] = Field(default={})
    sources: dict[Kind, Origin] | None = None


class Spec(Strict):
    """One file of the library."""

    family: Family
    licence: str
    note: str
    choices: str  # how many options a row has: "2", "3 to 5"
    prompts: dict[str, Prompt]
    fields: dict[str, str] = Field(default={})
    gold: str
    labels: list[str] | str | None = None
    group: str | None = None
    sources: dict[Kind, Origin]
    limits: dict[str, int]
    members: str = ""  # what the variants are: "languages"
    variants: dict[str, Variant] = Field(default={})


class Entry(Strict):
    """An entry of params.yaml that names a benchmark of the library.

    Attributes:
        spec: a name in the library.
        data: a directory with the files that the spec names under `local`, relative to params.yaml or absolute.
        source: wheel, hub or local. Default: local if `data` is given, else the first of wheel and hub in the spec.
        revision: the commit of the hub's data set, for specs without one.
        test: rows to hold out of train instead of the spec's test split.
    """

    spec: str
    limits: dict[str, Any] | None = None
    template: str = DEFAULT_TEMPLATE
    chat_template: bool = False
    date: Any = None  # BenchmarkSpec checks it
    data: str | None = None
    source: Kind | None = None
    revision: str | None = None
    test: dict[str, Any] | None = None


def spec_names() -> list[str]:
    """The names of the files of the library: groups, not their members."""
    return sorted(path.stem for path in SPECS.glob("*.yaml"))


def benchmark_names() -> list[str]:
    """The names of all benchmarks of the library: members of groups, not the groups."""
    return [
        f"{name}-{variant}" if variant else name
        for name in spec_names()
        for variant in (read_spec(name).variants or [""])
    ]


@functools.cache
def read_spec(name: str) -> Spec:
    """One file of the library. An error in it is a bug, not an InputError."""
    # The C loader, where available, is ten times as fast and as safe.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (SPECS / f"{name}.yaml").read_text(encoding="utf-8")
    return Spec.model_validate(yaml.load(text, loader))


def is_benchmark(name: str) -> bool:
    group, _, variant = name.partition("-")
    if group not in spec_names():
        return False
    variants = read_spec(group).variants
    return variant in variants if variants else not variant


def closest(name: str, names: Collection[str]) -> str:
    """The end of a message about an unknown name: similar names, or where to find all names."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else "`dsm benchmarks ls` lists all"


def undeclared(name: str, declared: Iterable[str]) -> str:
    """The message for a benchmark that params.yaml does not declare: whether the library has it, or similar names."""
    problem = f"{name!r} is not declared in params.yaml; choose from {sorted(declared)}"
    try:
        spec, _ = member(name, field="benchmarks")
    except InputError as error:
        return f"{problem}; {error.problem}"
    command = f"dsm study generation --on {name}" if spec.gold == ANY else f"dsm run --benchmark {name}"
    return f"{problem}, or add it from the library with `{command}`"


def member(name: str, *, field: str) -> tuple[Spec, Variant]:
    """The file and the variant of a benchmark of the library.

    Raises:
        InputError: the library does not have this benchmark.
    """
    if not is_benchmark(name):
        group = name.partition("-")[0]
        if name in spec_names():
            some = ", ".join(f"{name}-{variant}" for variant in list(read_spec(name).variants)[:3])
            raise InputError(field, f"{name} is a group; name one of its {read_spec(name).members}, such as {some}")
        names = [known for known in benchmark_names() if not group or known.startswith(group)]
        raise InputError(field, f"no benchmark {name!r} in the library; {closest(name, names or benchmark_names())}")
    group, _, variant = name.partition("-")
    spec = read_spec(group)
    return spec, spec.variants[variant] if variant else Variant()


def facts(name: str) -> dict[Kind, Facts]:
    """What is known of the rows of a benchmark, for each of its sources.

    Raises:
        InputError: the library has no such benchmark.
    """
    spec, variant = member(name, field="spec")
    sources = variant.sources or spec.sources
    return {kind: Facts.model_validate(_fill(source.facts, variant.values)) for kind, source in sources.items()}


def origin(name: str, *, field: str, kind: Kind | None = None, data: str | None = None) -> tuple[Kind, Origin, Facts]:
    """The source that a benchmark is read from, and the facts about its rows.

    The choice depends on the arguments alone, not on the machine, so the same params.yaml gives the same rows.

    Raises:
        InputError: the spec does not have this source, or `data` is missing for local files or given for others.
    """
    spec, variant = member(name, field=f"{field}.spec")
    sources = variant.sources or spec.sources
    kind = kind or ("local" if data else next(known for known in ("wheel", "hub", "local") if known in sources))
    if kind not in sources:
        raise InputError(f"{field}.source", f"{name} has no source {kind!r}; choose from {sorted(sources)}")
    if kind == "local" and data is None:
        raise InputError(f"{field}.data", "is missing: name the directory with the benchmark's files")
    if kind != "local" and data is not None:
        raise InputError(f"{field}.data", f"is for local files, but source is {kind!r}")
    return kind, sources[kind], facts(name)[kind]


def expand(raw: dict[str, Any], *, field: str) -> dict[str, Any]:
    """The entry `raw`, which names a benchmark of the library, as the full entry of a `BenchmarkSpec`.

    Args:
        field: the entry's field in params.yaml, for messages.

    Raises:
        InputError: a field is wrong, or the library does not have what it names.
    """
    try:
        entry = Entry.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(".".join([field, *map(str, first["loc"])]), first["msg"]) from None
    spec, variant = member(entry.spec, field=f"{field}.spec")
    if entry.template not in spec.prompts:
        raise InputError(
            f"{field}.template", f"{entry.spec} has no {entry.template!r}; choose from {sorted(spec.prompts)}"
        )
    kind, rows, _ = origin(entry.spec, field=field, kind=entry.source, data=entry.data)
    if entry.revision is not None and kind != "hub":
        raise InputError(f"{field}.revision", f"is for the hub, but the rows come from: {kind}")
    prompt = spec.prompts[entry.template]
    expanded: dict[str, Any] = {
        "train": _rows(spec, rows.train, kind, entry, field),
        "test": _rows(spec, rows.test, kind, entry, field) if isinstance(rows.test, OriginRows) else rows.test,
        "prompt": prompt.prompt,
        "options": prompt.options,
        "labels": rows.train.labels or spec.labels,
        "group": spec.group,
        "chat_template": entry.chat_template,
        "licence": spec.licence,
    }
    expanded = _fill(expanded, variant.values)
    if entry.test is not None:
        expanded["test"] = entry.test
    if "date" in raw:
        expanded["date"] = entry.date
    if "limits" in raw:
        expanded["limits"] = entry.limits
    return expanded


def _rows(spec: Spec, rows: OriginRows, kind: Kind, entry: Entry, field: str) -> dict[str, Any]:
    """One split as in params.yaml."""
    source = {"kind": kind, **rows.source}
    if kind == "local":
        source["paths"] = [f"{(entry.data or '').rstrip('/')}/{path}" for path in source["paths"]]
    if kind == "hub":
        known = source.get("revision")
        if known and entry.revision not in (None, known):
            raise InputError(f"{field}.revision", f"{entry.spec} is read from the commit {known}")
        source["revision"] = known or entry.revision
        if source["revision"] is None:
            raise InputError(
                f"{field}.revision",
                f"is missing: no commit of {source['id']} is known here; add one (40 hexadecimal digits), "
                "or `data` with a directory that holds its files",
            )
    fields = spec.fields if rows.fields is None else rows.fields
    return {"source": source, "where": rows.where, "fields": fields, "gold": rows.gold or spec.gold}


def _fill(value: Any, values: dict[str, str | list[str]]) -> Any:
    """`value` with every `$name` in its strings replaced. A list of values repeats the list item with the name."""
    if isinstance(value, dict):
        return {key: _fill(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled for item in value for filled in _filled_items(item, values)]
    if isinstance(value, str):
        return re.sub(r"\$([a-z]+)", lambda match: str(values.get(match[1], match[0])), value)
    return value


def _filled_items(item: Any, values: dict[str, str | list[str]]) -> list[Any]:
    if isinstance(item, str):
        for name, several in values.items():
            if isinstance(several, list) and f"${name}" in item:
                return [_fill(item, {**values, name: one}) for one in several]
    return [_fill(item, values)]
