"""Whether the outputs that dvc.lock names still have their bytes.

DVC hashes a file again when its size, time or inode changed, and never hashes one in its cache that is read-only. A bit
that flips on the disk changes none of these, and where files are hard links it is the same bit in both places.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.runtime.errors import InputError
from tasks.runtime.yamltext import read_yaml

LOCK = "dvc.lock"
DIRECTORY = ".dir"


@dataclass(frozen=True)
class Output:
    """An output of a stage: its path in the project and its MD5 in dvc.lock (for a directory: of its listing)."""

    path: str
    md5: str


def outputs_of(stages: Sequence[str] | None, root: Path) -> list[Output]:
    """The outputs of these stages that dvc.lock knows; None: of all."""
    locked = _locked(root)
    names = list(locked) if stages is None else [stage for stage in stages if stage in locked]
    try:
        return [Output(str(out["path"]), str(out["md5"])) for name in names for out in locked[name].get("outs", ())]
    except (AttributeError, KeyError, TypeError):
        raise InputError(LOCK, "has a stage whose outs lack path or md5; restore it from git") from None


def _locked(root: Path) -> dict[str, Any]:
    path = root / LOCK
    lock = read_yaml(path.read_text(encoding="utf-8"), field=LOCK) if path.exists() else None
    stages = lock.get("stages") or {} if isinstance(lock, dict) else {} if lock is None else None
    if not isinstance(stages, dict):
        raise InputError(LOCK, "has no mapping of stages; restore it from git")
    return stages


def is_altered(output: Output, root: Path) -> bool:
    """Whether the output is there and has other bytes than dvc.lock says. Reads all of it."""
    path = root / output.path
    if not output.md5.endswith(DIRECTORY):
        return path.is_file() and _md5(path) != output.md5
    return path.is_dir() and _listing(path) != output.md5


def damaged_in_cache(output: Output, cache: Path) -> Iterator[Path]:
    """The files of DVC's cache (the directory that `dvc cache dir` names) that hold this output, but other bytes."""
    cached = _object(cache, output.md5)
    if not cached.is_file():
        return
    if _md5(cached) != output.md5.removesuffix(DIRECTORY):
        yield cached
    elif output.md5.endswith(DIRECTORY):
        for entry in json.loads(cached.read_bytes()):
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


@dataclass
class Condition:
    """The condition of the files of an output.

    Attributes:
        damaged: files with other bytes, in the project or in the cache, and files that do not belong to the output,
            each with its problem.
        restorable: files that are missing in the project, but in the cache.
        lost: files that are in neither place.
        uncached: whether the cache lacks something that is here.
    """

    damaged: dict[Path, str] = field(default_factory=dict)
    restorable: list[Path] = field(default_factory=list)
    lost: list[Path] = field(default_factory=list)
    uncached: bool = False

    @property
    def whole(self) -> bool:
        """Whether all of it is here and has the bytes of dvc.lock."""
        return not (self.damaged or self.restorable or self.lost)

    def lines(self) -> list[str]:
        """A line for each file that is not as it should be."""
        lines = [f"{path}: {problem}" for path, problem in self.damaged.items()]
        lines += [f"{path}: not here, but in DVC's cache" for path in self.restorable]
        return lines + [f"{path}: neither here nor in DVC's cache" for path in self.lost]


OTHER = "does not match its hash in dvc.lock"


def look_at(output: Output, root: Path, cache: Path) -> Condition:
    """Hashes an output and its copy in DVC's cache."""
    condition, path, copy = Condition(), root / output.path, _object(cache, output.md5)
    here = _hashes(path)
    intact = here is not None and _md5_of(here) == output.md5
    kept = copy.is_file() and _md5(copy) == output.md5.removesuffix(DIRECTORY)
    if copy.is_file() and not kept:
        condition.damaged[copy] = OTHER
    if intact and here is not None:
        wanted = here
    elif not output.md5.endswith(DIRECTORY):
        wanted = {"": output.md5}
    elif kept and not path.is_file():
        wanted = {entry["relpath"]: entry["md5"] for entry in json.loads(copy.read_bytes())}
    else:  # which files it had is not known any more
        if here is None:
            condition.lost.append(path)
        else:
            condition.damaged[path] = OTHER
        return condition
    condition.uncached = not kept
    for name, md5 in wanted.items():
        member = _object(cache, md5)
        whole = kept if member == copy else member.is_file() and _md5(member) == md5
        if member.is_file() and not whole:
            condition.damaged[member] = OTHER
        if here is not None and name in here:
            condition.uncached |= not whole
            if here[name] != md5:
                condition.damaged[path / name] = OTHER
        elif here is not None and not name:  # a directory where a file was
            condition.damaged[path] = OTHER
        else:
            (condition.restorable if whole and kept else condition.lost).append(path / name)
    if "" not in wanted:
        strangers = (path / name for name in here or () if name not in wanted)
        condition.damaged |= dict.fromkeys(strangers, f"does not belong to {output.path}")
    if here is None and not condition.lost:
        condition.restorable = [path]
    return condition


def summary(conditions: Sequence[Condition]) -> str:
    """How many outputs are whole, and the condition of the others."""
    whole, total = sum(one.whole for one in conditions), len(conditions)
    text = f"{total} outputs match dvc.lock" if whole == total else f"{whole} of {total} outputs match dvc.lock"
    damaged, lost = (sum(bool(getattr(one, kind)) for one in conditions) for kind in ("damaged", "lost"))
    restorable = sum(bool(one.restorable) and not one.damaged and not one.lost for one in conditions)
    if damaged or lost:
        text += f"; {damaged} with damaged files, which must be removed"
        text += f"; {lost} with files that are neither here nor in DVC's cache"
    if restorable:
        text += f"; {restorable} that `dvc checkout` or `dsm run` brings back"
    uncached = sum(one.whole and one.uncached for one in conditions)
    return text + (f"; DVC's cache lacks {uncached} of them" if uncached else "")


def _hashes(path: Path) -> dict[str, str] | None:
    """MD5 of the files of a directory by name; of a single file by the name ""; None if the path does not exist."""
    if path.is_file():
        return {"": _md5(path)}
    return _members(path) if path.is_dir() else None


def _md5_of(hashes: dict[str, str]) -> str:
    """The MD5 in dvc.lock of an output with these hashes."""
    return hashes[""] if "" in hashes else _listed(hashes)


def _object(cache: Path, md5: str) -> Path:
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _listing(directory: Path) -> str:
    """The MD5 that DVC gives a directory."""
    return _listed(_members(directory))


def _members(directory: Path) -> dict[str, str]:
    return {path.relative_to(directory).as_posix(): _md5(path) for path in directory.rglob("*") if path.is_file()}


def _listed(hashes: dict[str, str]) -> str:
    entries = [{"md5": hashes[name], "relpath": name} for name in sorted(hashes)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + DIRECTORY
