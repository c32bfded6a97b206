"""The hash of a directory is that of its files' names and bytes, and of nothing else."""

import os

import pytest

from tasks.models.hashing import sha256_directory


def make(directory, files):
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return directory


FILES = {"config.json": "{}", "a/b.txt": "b", "z": ""}


def test_place_times_and_links_do_not_matter(tmp_path):
    one = make(tmp_path / "one", FILES)
    two = make(tmp_path / "elsewhere" / "two", dict(reversed(FILES.items())))
    os.utime(two / "z", (0, 0))
    (two / "z").unlink()
    (tmp_path / "blob").write_text("")
    (two / "z").symlink_to(tmp_path / "blob")
    assert sha256_directory(one) == sha256_directory(two)


@pytest.mark.parametrize(
    "other",
    [{"config.json": "{ }", "a/b.txt": "b", "z": ""}, {"config.json": "{}", "a/c.txt": "b", "z": ""}, {"z": ""}],
)
def test_names_and_bytes_matter(tmp_path, other):
    assert sha256_directory(make(tmp_path / "one", FILES)) != sha256_directory(make(tmp_path / "two", other))
