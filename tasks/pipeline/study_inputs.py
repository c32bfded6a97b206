"""Hashes of the benchmarks and text files that a study reads besides its cell, in its entry of params.yaml.

The dependencies of a DVC stage cannot be a list in params.yaml. So the entry holds hashes, which DVC compares.
`dsm study` writes them, and the step checks them.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tasks.benchmarks.benchmark_spec import BenchmarkSpec, SplitRows
from tasks.pipeline.runs import StudyRun
from tasks.pipeline.settings import Settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import existing_path, sha256_file, sha256_json
from tasks.sources.kinds import LocalSource


def hashes(
    settings: Settings, root: Path, benchmarks: Iterable[str], texts: Mapping[str, str], *, field: str
) -> dict[str, str]:
    """The hashes of the text files and of the benchmarks, by name.

    Args:
        field: the entry's field in params.yaml, for messages.

    Raises:
        InputError: a file does not exist.
    """
    result = {}
    for name, file in texts.items():
        path = existing_path(file, field=f"{field}.texts.{name}", root=root)
        if not path.is_file():
            raise InputError(f"{field}.texts.{name}", f"{file} is not a file")
        result[name] = sha256_file(path)
    return result | {name: benchmark_hash(settings.benchmarks[name], root, field=name) for name in benchmarks}


def benchmark_hash(spec: BenchmarkSpec, root: Path, *, field: str) -> str:
    """Hash of the entry of a benchmark in params.yaml and of its unpinned local files."""
    sources = [split.source for split in (spec.train, spec.test) if isinstance(split, SplitRows)]
    files = [path for source in sources if isinstance(source, LocalSource) for path in source.paths]
    unpinned = {path: sha256_file(existing_path(path, field=f"benchmarks.{field}.data", root=root)) for path in files}
    return sha256_json([spec.model_dump(mode="json", exclude={"licence"}), unpinned])


def check_inputs(run: StudyRun, settings: Settings, root: Path) -> None:
    """Checks the hashes in an entry of `studies`.

    Raises:
        InputError: hashes are missing or wrong; the message has the right ones.
    """
    field = f"studies.{run.name}"
    actual = hashes(settings, root, run.benchmarks, run.texts, field=field)
    if run.inputs == actual:
        return
    names = sorted(name for name in {*actual, *run.inputs} if actual.get(name) != run.inputs.get(name))
    problem = f"has outdated hashes for {', '.join(names)}" if run.inputs else "is missing"
    raise InputError(
        f"{field}.inputs", f"{problem}: `dsm study {run.study}` writes it, or write inputs: {json.dumps(actual)}"
    )
