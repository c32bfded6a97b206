"""Repairs two files that DVC writes in place. If DVC is killed while it writes one, it refuses to run afterwards.

The file of locks (.dvc/tmp/rwlock) is not needed after its writer has ended, and is removed. dvc.lock is copied before
every command, and a broken one is replaced by the copy. Results that the killed command did not record are computed
again or come from DVC's run cache.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from zc.lockfile import LockError, SimpleLockFile

from tasks.runtime.files import replacing

KEPT = "dvc.lock.kept"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast


def keep(root: Path) -> None:
    """Copies dvc.lock to .dvc/tmp, unless it is broken."""
    lock, kept = root / "dvc.lock", _temporary(root) / KEPT
    if not lock.exists():
        return
    content = lock.read_bytes()
    if not (kept.exists() and kept.read_bytes() == content) and _is_lock(content):
        _write(kept, content)


def mend(root: Path) -> list[str]:
    """Removes a broken file of locks, and replaces a broken dvc.lock by its copy.

    DVC holds a lock while it writes either file. If another process holds that lock, the file is still being written,
    and is not changed.

    Returns:
        The names of the files that were repaired.
    """
    temporary, mended = _temporary(root), []
    with _broken(temporary / "rwlock", _is_json, guard=temporary / "rwlock.lock") as broken:
        if broken:
            (temporary / "rwlock").unlink()
            mended.append("rwlock")
    with _broken(root / "dvc.lock", _is_lock, guard=temporary / "lock") as broken:
        if broken and (temporary / KEPT).exists():
            _write(root / "dvc.lock", (temporary / KEPT).read_bytes())
            mended.append("dvc.lock")
    return mended


@contextmanager
def _broken(path: Path, is_whole: Callable[[bytes], bool], *, guard: Path) -> Iterator[bool]:
    """Yields whether the file is broken and no process is writing it. DVC cannot write it until the context ends."""

    def broken() -> bool:
        return path.exists() and not is_whole(path.read_bytes())

    if not broken():
        yield False
        return
    try:
        held = SimpleLockFile(str(guard))
    except LockError:
        yield False
        return
    try:
        yield broken()
    finally:
        held.close()


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _is_lock(content: bytes) -> bool:
    """Whether the content ends with a whole line: a file cut in a line can be valid YAML that lacks later stages."""
    try:
        return content.endswith(b"\n") and "schema" in (yaml.load(content, LOADER) or {})
    except (yaml.YAMLError, TypeError):
        return False


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _temporary(root: Path) -> Path:
    return root / ".dvc" / "tmp"
