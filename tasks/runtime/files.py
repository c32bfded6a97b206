"""Atomic writes of files whose bytes depend only on their content."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from typing import IO, Any

import pandas as pd

from tasks.runtime.errors import InputError

ALIVE = "alive"  # a file in a scratch directory, locked as long as the process that uses the directory lives


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """An empty directory beside `target`, removed at the end.

    SIGKILL leaves it; the next call for the same target removes directories whose process has ended.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.glob(f".{_escaped(target.name)}.????????.dsm"):
        if lock := _take(old):
            with lock:
                shutil.rmtree(old, ignore_errors=True)
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".dsm", dir=target.parent))
        if lock := _take(scratch):
            break  # else another process has just removed it as an old one
    with lock:
        try:
            inside = scratch / "work"
            inside.mkdir()
            yield inside
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _take(scratch: Path) -> IO[str] | None:
    """The lock on a scratch directory; None if another process holds it or has removed the directory."""
    path = scratch / ALIVE
    try:
        file = path.open("w")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside `target`; on success the file or directory written there replaces `target`.

    On an error, the temporary path is removed and `target` keeps its old content. Permissions follow the umask, even if
    the library that wrote the files does not. A file is replaced in one step.

    Example:
        >>> with replacing(Path("grid.json")) as temporary:
        ...     temporary.write_text("{}")
    """
    with scratch_beside(target) as scratch:
        temporary = scratch / target.name
        yield temporary
        of_files, of_directories = (S_IMODE(path.stat().st_mode) for path in (scratch.parent / ALIVE, scratch))
        for path in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            # safetensors and tempfile create files that only their owner can read.
            path.chmod(of_directories if path.is_dir() else of_files)
            _fsync(path)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)  # not atomic, but DVC has already removed the outputs of a stage
        temporary.replace(target)
        _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys; NaN and infinity are refused, since they are not JSON."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(line + "\n" for line in lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): real rows contain U+0085 and U+2028.
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def existing_path(name: str, *, field: str, root: Path) -> Path:
    """A local path, relative to the project's directory `root`.

    Raises:
        InputError: there is no such file or directory.
    """
    path = root / Path(name).expanduser()
    if not path.exists():
        raise InputError(field, f"no such file or directory: {name} (looked in {root})")
    return path
