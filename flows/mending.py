"""Two files that DVC writes in place: a kill in that instant leaves one cut short, and DVC then refuses to run.

Its file of locks (.dvc/tmp/rwlock) holds nothing that is needed once its writer is gone, and is removed. Of dvc.lock a
copy is kept before every command, and put back. What the killed command would have written into it is computed again,
or comes from DVC's cache of runs.
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
    """Copies dvc.lock to .dvc/tmp, if it is whole."""
    lock, kept = root / "dvc.lock", _temporary(root) / KEPT
    if not lock.exists():
        return
    content = lock.read_bytes()
    if not (kept.exists() and kept.read_bytes() == content) and _is_lock(content):
        _write(kept, content)


def mend(root: Path) -> list[str]:
    """Removes a broken file of locks; puts the copy of a broken dvc.lock in its place.

    DVC writes either file under a lock of its own. Where another process holds that, the file is not broken but being
    written, and stays as it is.

    Returns:
        Which of the two were broken and are whole now.
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
    """Whether the file is there, not whole, and nobody writes it; nobody does until the context ends."""

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
    """A cut in the middle of a line may leave YAML, in which DVC would miss the stages after it."""
    try:
        return content.endswith(b"\n") and "schema" in (yaml.load(content, LOADER) or {})
    except (yaml.YAMLError, TypeError):
        return False


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _temporary(root: Path) -> Path:
    return root / ".dvc" / "tmp"
