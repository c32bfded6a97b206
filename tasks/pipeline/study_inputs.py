"""What a study reads beside its cell: benchmarks of params.yaml and files of texts, each by a hash in its entry there.

A stage of DVC cannot have a list of an entry as its dependencies. So the entry holds the hashes, as the sources of
benchmarks do, and DVC sees them: `dsm study` writes them, and the step refuses others.
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
    """The hash of each text's bytes, and of what params.yaml (and its unhashed files) say of each benchmark's rows.

    Args:
        field: the entry's place in params.yaml, for messages.

    Raises:
        InputError: a file is not there.
    """
    found = {}
    for name, file in texts.items():
        path = existing_path(file, field=f"{field}.texts.{name}", root=root)
        if not path.is_file():
            raise InputError(f"{field}.texts.{name}", f"{file} is not a file")
        found[name] = sha256_file(path)
    return found | {name: benchmark_hash(settings.benchmarks[name], root, field=name) for name in benchmarks}


def benchmark_hash(spec: BenchmarkSpec, root: Path, *, field: str) -> str:
    """Hash of what the rows and prompts of a benchmark depend on."""
    sources = [split.source for split in (spec.train, spec.test) if isinstance(split, SplitRows)]
    files = [path for source in sources if isinstance(source, LocalSource) for path in source.paths]
    unpinned = {path: sha256_file(existing_path(path, field=f"benchmarks.{field}.data", root=root)) for path in files}
    return sha256_json([spec.model_dump(mode="json", exclude={"licence"}), unpinned])


def check_inputs(run: StudyRun, settings: Settings, root: Path) -> None:
    """Refuses an entry of `studies` whose hashes are missing or are not those of what is there.

    Raises:
        InputError: with the hashes that the entry should hold.
    """
    field = f"studies.{run.name}"
    found = hashes(settings, root, run.benchmarks, run.texts, field=field)
    if run.inputs == found:
        return
    names = sorted(name for name in {*found, *run.inputs} if found.get(name) != run.inputs.get(name))
    problem = "is missing" if not run.inputs else f"does not fit what is there for {', '.join(names)}"
    raise InputError(
        f"{field}.inputs", f"{problem}: `dsm study {run.study}` writes it, or write inputs: {json.dumps(found)}"
    )
