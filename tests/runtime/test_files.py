"""Files are complete or do not exist, and their bytes depend only on their content."""

import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from tasks.runtime.files import (
    read_json,
    read_jsonl,
    replacing,
    scratch_beside,
    sha256_file,
    sha256_json,
    write_json,
    write_jsonl,
    write_parquet,
    write_text,
)


def fail_while_replacing(target, write):
    with replacing(target) as temporary:
        write(temporary)
        raise RuntimeError("in the middle")


def write_half_a_directory(path):
    path.mkdir()
    (path / "b").write_text("half")


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="in the middle"):
        fail_while_replacing(target, lambda path: path.write_text("half"))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_the_old_directory_and_nothing_else(tmp_path):
    target = tmp_path / "model"
    with replacing(target) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError, match="in the middle"):
        fail_while_replacing(target, write_half_a_directory)
    assert [path.name for path in target.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_directory_takes_the_place_of_the_old(tmp_path):
    target = tmp_path / "model"
    for name in ("a", "b"):
        with replacing(target) as temporary:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / name).write_text(name)
    assert [path.name for path in (target / "deep").iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("umask", "of_files", "of_directories"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_permissions_follow_the_umask(tmp_path, umask, of_files, of_directories):
    """Independent of the writer: safetensors and Python's tempfile create files that only their owner can read."""
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.safetensors") as temporary:
            save_file({"a": np.zeros(1)}, temporary)
        with replacing(tmp_path / "model") as temporary:
            Path(tempfile.mkdtemp(dir=temporary.parent)).rename(temporary)
            save_file({"a": np.zeros(1)}, temporary / "model.safetensors")
            Path(tempfile.mkdtemp(dir=temporary)).rename(temporary / "deep")
            Path(tempfile.mkstemp(dir=temporary / "deep")[1]).rename(temporary / "deep" / "b")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert len(modes) == 5
    assert modes == {path: of_directories if path.is_dir() else of_files for path in modes}


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": math.nan})
    assert read_json(tmp_path / "a.json") == {"a": "é", "b": 1}


def test_jsonl_keeps_line_breaks_of_other_kinds(tmp_path):
    rows = [{"text": "a\u0085b\u2028c\rd\ne"}, {"text": ""}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_the_same_content_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_parquet(tmp_path / name, pd.DataFrame({"x": [1.5, 2.5], "y": ["p", "q"]}))
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json([1, 2]) != sha256_json([2, 1])


def test_hash_of_known_bytes(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


HOLDS = """
import sys, time
from pathlib import Path
from tasks.runtime.files import scratch_beside
with scratch_beside(Path(sys.argv[1])) as work:
    (work / "large").write_text("x")
    print(flush=True)
    time.sleep(600)
"""


def holder(target):
    """A process with a scratch directory for the target, and that directory."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(target)], stdout=subprocess.PIPE, env=environment)
    process.stdout.readline()
    return process


def test_what_a_killed_process_left_is_swept_away_and_what_a_living_one_uses_is_not(tmp_path):
    target = tmp_path / "a[1]*"
    dead, living = holder(target), holder(target)
    try:
        dead.kill()
        dead.wait()
        kept = tmp_path / f".{target.name}.notours"
        kept.mkdir()
        before = set(tmp_path.iterdir())
        assert len(before) == 3
        write_text(target, "new")
        left = set(tmp_path.iterdir()) - {target, kept}
        assert len(left) == 1
        living.send_signal(signal.SIGKILL)
        living.wait()
        with scratch_beside(target) as work:
            assert list(work.iterdir()) == []
        assert set(tmp_path.iterdir()) == {target, kept}
    finally:
        for process in (dead, living):
            process.kill()
            process.wait()
            process.stdout.close()


def test_the_scratch_of_another_target_stays(tmp_path):
    process = holder(tmp_path / "ab")
    try:
        write_text(tmp_path / "a", "")
        assert len(list(tmp_path.glob(".ab.*.dsm"))) == 1
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
