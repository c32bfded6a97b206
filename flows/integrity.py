"""Whether the outputs that dvc.lock names still have their bytes.

DVC hashes a file again when its size, time or inode changed, and never hashes one in its cache that is read-only. A bit
that flips on the disk changes none of these, and where files are hard links it is the same bit in both places.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

DIRECTORY = ".dir"


@dataclass(frozen=True)
class Output:
    """An output of a stage: its path in the project and its MD5 in dvc.lock (for a directory: of its listing)."""

    path: str
    md5: str


def outputs_of(stages: Sequence[str] | None, root: Path) -> list[Output]:
    """The outputs of these stages that dvc.lock knows; None: of all."""
    path = root / "dvc.lock"
    lock = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    locked = (lock or {}).get("stages") or {}
    names = list(locked) if stages is None else [stage for stage in stages if stage in locked]
    return [Output(out["path"], out["md5"]) for name in names for out in locked[name].get("outs", ())]


def is_altered(output: Output, root: Path) -> bool:
    """Whether the output is there and has other bytes than dvc.lock says. Reads all of it."""
    path = root / output.path
    if not output.md5.endswith(DIRECTORY):
        return path.is_file() and _md5(path) != output.md5
    return path.is_dir() and _listing(path) != output.md5


def damaged_in_cache(output: Output, cache: Path) -> Iterator[Path]:
    """The files of DVC's cache (the directory that `dvc cache dir` names) that hold this output, but other bytes."""
    found = _object(cache, output.md5)
    if not found.is_file():
        return
    if _md5(found) != output.md5.removesuffix(DIRECTORY):
        yield found
    elif output.md5.endswith(DIRECTORY):
        for entry in json.loads(found.read_bytes()):
            member = _object(cache, entry["md5"])
            if member.is_file() and _md5(member) != entry["md5"]:
                yield member


def discard(output: Output, root: Path, cache: Path) -> None:
    """Removes an altered output, and what is damaged of it in the cache: DVC then restores it or runs its stage."""
    for path in damaged_in_cache(output, cache):
        path.unlink()
    path = root / output.path
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _object(cache: Path, md5: str) -> Path:
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _listing(directory: Path) -> str:
    """The MD5 that DVC gives a directory."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    entries = [{"md5": _md5(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + DIRECTORY
