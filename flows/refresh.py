"""Whether a benchmark has new rows: its pins in params.yaml move to what its sources hold now.

A local file is hashed again, a data set on the hub is taken at its newest commit. A wheel is one version, and stays it
until somebody names another in params.yaml; so does what the library says of its own benchmarks.
"""

from pathlib import Path

import yaml

from flows.cells import edited
from tasks.benchmarks.benchmark_spec import SplitRows
from tasks.pipeline.cell import open_cell
from tasks.pipeline.settings import PARAMS
from tasks.runtime.files import sha256_file
from tasks.sources.fetch import hub_head, local_path
from tasks.sources.kinds import HubSource, LocalSource, PathSource


def refresh(root: Path, benchmark: str) -> list[str]:
    """Moves the pins of a declared benchmark in params.yaml.

    Returns:
        A line for each pin that moved; none if everything is as it was.

    Raises:
        InputError: a source is not there.
    """
    if _is_of_the_library(root, benchmark):
        return []
    spec = open_cell(None, benchmark, root).benchmark_spec
    moved = {}
    for split, rows in (("train", spec.train), ("test", spec.test)):
        if not isinstance(rows, SplitRows):
            continue
        source, field = rows.source, f"benchmarks.{benchmark}.{split}.source"
        if isinstance(source, PathSource):
            before, pin, now = source.sha256, "sha256", sha256_file(local_path(source, field=field, root=root))
        elif isinstance(source, HubSource):
            before, pin, now = source.revision, "revision", hub_head(source, field=field)
        else:
            continue
        if now != before:
            moved[split] = (pin, before, now)
    if moved:
        with edited(root) as document:
            for split, (pin, _, now) in moved.items():
                document["benchmarks"][benchmark][split]["source"][pin] = now
    return [f"{split}.source.{pin}: {before} -> {now}" for split, (pin, before, now) in moved.items()]


def is_unpinned(root: Path, benchmark: str) -> bool:
    """Whether the rows come from local files whose hash is not in params.yaml, so that they must be read again."""
    return isinstance(open_cell(None, benchmark, root).benchmark_spec.train.source, LocalSource)


def _is_of_the_library(root: Path, benchmark: str) -> bool:
    entry = yaml.safe_load((root / PARAMS).read_text(encoding="utf-8"))["benchmarks"][benchmark]
    return "spec" in entry
