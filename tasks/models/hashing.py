"""The hash of a model directory: what a recipe is bound to, and what a local model directory is pinned by."""

from pathlib import Path

from tasks.pipeline.files import sha256_file, sha256_json


def sha256_directory(directory: Path) -> str:
    """SHA-256 over the sorted (relative name, SHA-256) pairs of all files in `directory`, at any depth.

    Independent of where the directory lies, of times and of permissions; symbolic links to files count as files.
    """
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sha256_json(sorted((path.relative_to(directory).as_posix(), sha256_file(path)) for path in files))
