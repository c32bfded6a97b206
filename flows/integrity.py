"""Whether the outputs that dvc.lock names still have their bytes.

DVC hashes a file when its size, time or inode changed, and trusts it otherwise; a file in its cache that is read-only
it trusts always. A bit that flips on the disk changes none of these, and with hard links it is the same bit in both.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.pipeline.files import read_json, read_yaml_file


@dataclass(frozen=True)
class Output:
    """An output of a stage: its path in the project, and its MD5 in dvc.lock (with `.dir` for a directory)."""

    path: str
    md5: str


def outputs_of(stages: Sequence[str] | None, root: Path) -> list[Output]:
    """The outputs of these stages that dvc.lock knows, None for all, in its order."""
    locked = read_yaml_file(root / "dvc.lock").get("stages", {}) if (root / "dvc.lock").exists() else {}
    names = locked if stages is None else [stage for stage in stages if stage in locked]
    return [Output(out["path"], out["md5"]) for name in names for out in locked[name].get("outs", ())]


def damaged(output: Output, root: Path, cache: Path) -> list[Path]:
    """The files of an output whose bytes are not those of dvc.lock though DVC believes so, its files in the cache too.

    One that is not there, or was changed in the ordinary way (then it is no longer as old as DVC knows it), is none:
    DVC sees that by itself.
    """
