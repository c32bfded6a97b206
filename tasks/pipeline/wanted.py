"""Values of `--model` and `--benchmark` that params.yaml does not declare: a path, a hub id, a file of rows.

This module writes nothing; it returns the pinned entry for params.yaml.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.benchmarks import library
from tasks.benchmarks.benchmark_spec import BenchmarkSpec, SplitRows
from tasks.pipeline.settings import Settings, in_file
from tasks.runtime.errors import InputError
from tasks.runtime.files import existing_path, sha256_file
from tasks.sources.fetch import FIRST_SHARD
from tasks.sources.kinds import HubSource, PathSource
from tasks.sources.pinning import COMMIT, HUB_ID, ask_hub, sha256_of_gguf

ROWS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Wanted:
    """A model or a benchmark that a command names.

    Attributes:
        name: its name in params.yaml, present or new.
        entry: the new entry of params.yaml; None if it is declared.
        pins: new hashes of a declared entry whose file has changed, by their path in the entry.
        comment: on the pin, for params.yaml.
        notes: lines for the user on what was recognised or decided.
    """

    name: str
    entry: dict[str, Any] | None = None
    pins: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    comment: str = ""
    notes: tuple[str, ...] = ()


def wanted_model(text: str, settings: Settings, root: Path, taken: Collection[str] = ()) -> Wanted:
    """The model that `text` names: a declared name, a directory, a GGUF file, or a hub id with or without @revision.

    Args:
        taken: names that the same command adds.

    Raises:
        InputError: it does not exist or is not a model.
    """
    if in_file(text) in settings.models:
        return Wanted(in_file(text))
    path = root / Path(text).expanduser()
    if path.exists() or _is_a_path(text, (".gguf",)):
        return _local_model(text, settings, root, taken)
    if match := HUB_ID.fullmatch(text):
        try:
            return _hub_model(match["id"], match["revision"], settings, taken)
        except InputError as error:  # it may have been meant as a path
            raise InputError(error.field, f"{text} is not a directory or file here, and {error.problem}") from None
    raise InputError(
        "models",
        f"{text!r} is not declared in params.yaml; choose from {sorted(settings.models)}; it is not a directory, .gguf "
        "file or hub id such as org/name either",
    )


def _is_a_path(text: str, endings: tuple[str, ...]) -> bool:
    """Whether the text can only be a path, so that a missing file is reported as such."""
    return text.startswith((".", "/", "~")) or text.endswith(endings)


def _local_model(text: str, settings: Settings, root: Path, taken: Collection[str]) -> Wanted:
    path = existing_path(text, field="model", root=root)
    sha256 = hash_of_model(path, field="model")
    for name, model in settings.models.items():
        if isinstance(model.source, PathSource) and _is_same(root, model.source.path, path):
            moved: dict[tuple[str, ...], str] = {}
            if model.source.sha256 != sha256:
                moved["source", "sha256"] = sha256
            return Wanted(name, pins=moved, notes=_moved(f"models.{name}", moved))
    source = {"kind": "path", "path": _as_written(text), "sha256": sha256}
    resolved = path.resolve()
    first = FIRST_SHARD.fullmatch(resolved.name)
    stem = first["stem"] if first else resolved.name.removesuffix(".gguf")
    name = _free_name(_names([*resolved.parts[:-1], stem]), {*settings.models, *taken})
    comment = f"of the model in the directory: `dsm hash {source['path']}`" if path.is_dir() else ""
    return Wanted(name, {"source": source}, comment=comment)


def hash_of_model(path: Path, *, field: str) -> str:
    """The SHA-256 that pins a model directory or a GGUF file.

    Raises:
        InputError: it is neither.
    """
    from tasks.models.hashing import sha256_directory

    check_model_path(path, field=field)
    return sha256_directory(path) if path.is_dir() else sha256_of_gguf(path, field=field)


def check_model_path(path: Path, *, field: str) -> None:
    """Checks the path without reading weights.

    Raises:
        InputError: it is neither a directory with a configuration and safetensors weights nor a GGUF file.
    """
    from tasks.models.weights import weight_files

    if not path.is_dir():
        if path.suffix != ".gguf":
            raise InputError(field, f"{path} is not a model: a directory with safetensors or a .gguf file is needed")
        return
    if not (path / "config.json").is_file():
        raise InputError(field, f"{path} is not a model directory: it has no config.json")
    if not weight_files(path):
        raise InputError(field, f"{path} has no model.safetensors and no index of shards; no other format is read")


def _hub_model(repository: str, revision: str | None, settings: Settings, taken: Collection[str]) -> Wanted:
    declared = {
        name: model.source.revision
        for name, model in settings.models.items()
        if isinstance(model.source, HubSource) and model.source.id == repository
    }
    if revision is None and declared:
        name, commit = next(iter(declared.items()))
        return Wanted(name, notes=(f"{repository} is {name} in params.yaml, at the commit {commit}",))
    info = None if revision and COMMIT.fullmatch(revision) else ask_hub(repository, revision, field="model")
    commit = info.commit if info else str(revision)
    for name, known in declared.items():
        if known == commit:
            return Wanted(name, notes=(f"{repository}@{revision} is {name} in params.yaml",))
    entry: dict[str, Any] = {"licence": info.licence} if info and info.licence else {}
    entry["source"] = {"kind": "hub", "id": repository, "revision": commit}
    names = [*_names(repository.split("/")), *_names([*repository.split("/"), commit[:7]])[1:]]
    comment = "" if revision == commit else f"the commit of {revision or 'its default branch'} on first use"
    return Wanted(_free_name(names, {*settings.models, *taken}), entry, comment=comment)


def wanted_benchmark(
    text: str, settings: Settings, root: Path, *, data: str | None = None, taken: Collection[str] = ()
) -> Wanted:
    """The benchmark that `text` names: a declared name, one of the library, or a JSONL, CSV or Parquet file.

    Args:
        data: a directory with the files of a benchmark of the library.
        taken: names that the same command adds.

    Raises:
        InputError: it does not exist, or the columns of the file are not recognised.
    """
    if in_file(text) in settings.benchmarks:
        if data is not None:
            raise InputError(
                "data", f"benchmarks.{text} is in params.yaml already; set the directory of its files there"
            )
        return Wanted(in_file(text))
    if library.is_benchmark(text):
        return Wanted(text, of_the_library(text, data, root))
    if (root / Path(text).expanduser()).exists() or _is_a_path(text, ROWS):
        if data is not None:
            raise InputError("data", "is for a benchmark of the library, not for a file of rows")
        return _file_of_rows(text, settings, root, taken)
    raise InputError("benchmarks", library.undeclared(text, settings.benchmarks))


def spec_of(wanted: Wanted, settings: Settings) -> BenchmarkSpec:
    """The specification of the benchmark, declared or new."""
    if wanted.entry is None:
        return settings.benchmarks[wanted.name]
    entry = wanted.entry
    return BenchmarkSpec.model_validate(library.expand(entry, field=wanted.name) if "spec" in entry else entry)


def of_the_library(name: str, data: str | None, root: Path) -> dict[str, Any]:
    """The entry of a benchmark of the library, with the limits of its file.

    Raises:
        InputError: its source is not available.
    """
    spec, _ = library.member(name, field="benchmarks")
    entry: dict[str, Any] = {"spec": name, "limits": dict(spec.limits)} | ({"data": data} if data else {})
    written = library.expand(entry, field=f"benchmarks.{name}")
    for split in ("train", "test"):
        for path in written[split].get("source", {}).get("paths", ()):
            existing_path(path, field="data", root=root)
    return entry


def _file_of_rows(text: str, settings: Settings, root: Path, taken: Collection[str]) -> Wanted:
    from tasks.benchmarks.recognise import recognise
    from tasks.benchmarks.row_files import read_rows

    path = existing_path(text, field="benchmark", root=root)
    if path.suffix not in ROWS:
        raise InputError("benchmark", f"{text} is neither a benchmark of the library nor a file {', '.join(ROWS)}")
    sha256 = sha256_file(path)
    for name, spec in settings.benchmarks.items():
        if (pins := _pins_of(spec, root, path, sha256)) is not None:
            notes = (f"{text} is {name} in params.yaml, which says how its columns are read",)
            return Wanted(name, pins=pins, notes=(*notes, *_moved(f"benchmarks.{name}", pins)))
    source = {"kind": "path", "path": _as_written(text), "sha256": sha256}
    recognised = recognise(read_rows(path, name=text, field="benchmark"), name=text, source=source)
    name = _free_name(
        _names([*path.resolve().parts[:-1], path.stem]), {*settings.benchmarks, *taken, *library.benchmark_names()}
    )
    comment = "guessed from the columns: prompt, options, labels and gold; check them, and correct what is wrong"
    return Wanted(name, recognised.entry, comment=comment, notes=tuple(recognised.notes))


def _pins_of(spec: BenchmarkSpec, root: Path, path: Path, sha256: str) -> dict[tuple[str, ...], str] | None:
    """The new hashes of a declared benchmark whose file has changed; None if it does not use the file."""
    pins: dict[tuple[str, ...], str] | None = None
    for split in ("train", "test"):
        rows = getattr(spec, split)
        if not isinstance(rows, SplitRows) or not isinstance(rows.source, PathSource):
            continue
        if _is_same(root, rows.source.path, path):
            pins = pins or {}
            if rows.source.sha256 != sha256:
                pins[split, "source", "sha256"] = sha256
    return pins


def _moved(place: str, pins: Mapping[tuple[str, ...], str]) -> tuple[str, ...]:
    return tuple(f"{'.'.join([place, *way])}: now {value}, since the file has changed" for way, value in pins.items())


def _is_same(root: Path, declared: str, path: Path) -> bool:
    return (root / Path(declared).expanduser()).resolve() == path.resolve()


def _as_written(text: str) -> str:
    """The path for params.yaml; a relative path stays relative to the project."""
    return os.path.normpath(text) if not text.startswith("~") else text


# -- names ------------------------------------------------------------------------------------------------------------


def _names(parts: Iterable[str]) -> list[str]:
    """Names from the last parts of a path, the shortest first: lower-case letters, digits, - and _."""
    clean = [re.sub(r"[^a-z0-9_]+", "-", in_file(part.lower())).strip("-_") for part in parts]
    clean = [part for part in clean if part]
    return ["-".join(clean[-count:]) for count in range(1, len(clean) + 1)]


def _free_name(names: list[str], taken: Collection[str]) -> str:
    for name in names:
        if name not in taken:
            return name
    raise InputError("params.yaml", f"already has the names {', '.join(names[:3])}; declare it there under another one")
