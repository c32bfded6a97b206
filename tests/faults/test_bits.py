"""A bit flips in a file that DVC considers unchanged: what detects it, and that the result is computed again."""

import os
from pathlib import Path

import pytest
import yaml

from flows.integrity import Output, is_altered, outputs_of
from flows.stages import any_stale, discard_damaged, run_stage, stages_of
from tests.conftest import copy_of, made_once
from tests.flows.stand_in_project import cell_project, dvc, make_project, ran, script
from tests.flows.test_cli import call

REPORT = "data/cells/tiny/reviews/report.html"


def flip(path: Path) -> None:
    """Changes one bit in place; size, times, permissions and inode do not change."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        (byte,) = file.read(1)
        file.seek(before.st_size // 2)
        file.write(bytes([byte ^ 1]))
    path.chmod(before.st_mode & 0o777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cached(root: Path, name: str) -> Path:
    """The file of an output in DVC's cache."""
    (md5,) = [output.md5 for output in outputs_of(None, root) if output.path == name]
    return root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


@pytest.fixture(params=["copy", pytest.param("hardlink", marks=pytest.mark.slow)])
def finished(request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        cell_project(root)
        # The stand-in writes one file for the model; a real one is a directory.
        text = (root / "stand_in.py").read_text()
        text = text.replace(
            "    out.write_bytes",
            "    if step == 'model': out.mkdir(); out /= 'a/b'; out.parent.mkdir()\n    out.write_bytes",
        )
        (root / "stand_in.py").write_text(text)
        with (root / ".dvc" / "config").open("a") as config:
            config.write(f"[cache]\n    type = {request.param}\n")
        dvc(root, "repro")
        ran(root)

    copy_of(made_once(tmp_path_factory, f"bits-{request.param}", make), project)
    dvc(project, "status")  # DVC has hashed every file, and recognises it by its time and size
    return project


def again(root: Path, stage: str) -> str:
    """What the flow does with a stage that DVC considers up to date."""
    assert run_stage(stage, root, timeout=120, log=print) == "cached"
    discard_damaged(stage, root)
    return run_stage(stage, root, timeout=120, log=print)


def test_a_flipped_bit_in_a_result_is_noticed_and_the_result_made_again(finished: Path) -> None:
    path, stage = finished / REPORT, "report@tiny-reviews"
    before = path.read_bytes()
    linked = path.stat().st_ino == cached(finished, REPORT).stat().st_ino
    assert again(finished, stage) == "cached"
    flip(path)
    assert path.read_bytes() != before
    assert dvc(finished, "status", "--json") == "{}\n"  # DVC does not notice
    code, out, err = call("verify")
    assert (code, str(path) in out, err.startswith("failed: verify: ")) == (1, True, True)
    assert again(finished, stage) == ("ran" if linked else "restored")
    assert path.read_bytes() == before
    assert call("verify")[0] == 0


def test_a_flipped_bit_in_the_cache_is_noticed_when_it_is_restored(finished: Path) -> None:
    path, stage = finished / REPORT, "report@tiny-reviews"
    before = path.read_bytes()
    flip(cached(finished, REPORT))
    assert call("verify")[0] == 1
    path.unlink()
    assert run_stage(stage, finished, timeout=120, log=print) == "restored"
    assert path.read_bytes() != before  # DVC does not read the file
    assert discard_damaged(stage, finished) == [REPORT]
    assert run_stage(stage, finished, timeout=120, log=print) == "ran"
    assert path.read_bytes() == before


def test_a_flipped_bit_in_a_model(finished: Path) -> None:
    path = finished / "data" / "models" / "tiny" / "a" / "b"
    before = path.read_bytes()
    flip(path)
    assert not any_stale(stages_of("tiny", "reviews"), finished)
    assert call("verify")[0] == 1
    again(finished, "model@tiny")
    assert path.read_bytes() == before
    assert call("verify")[1].endswith("outputs match dvc.lock\n")


def test_a_flipped_bit_in_the_list_of_a_directory(finished: Path) -> None:
    flip(cached(finished, "data/models/tiny"))
    assert call("verify")[0] == 1


def test_what_is_not_there_is_not_altered(tmp_path: Path) -> None:
    assert not is_altered(Output("a", "0" * 32), tmp_path)
    assert not is_altered(Output("a", "0" * 32 + ".dir"), tmp_path)


def test_a_real_directory_has_the_hash_that_dvc_gives_it(project: Path) -> None:
    text = (
        "import pathlib\n"
        "for name in ('d/b', 'd/a/c', 'd/a.b', 'd/é'):\n"
        "    path = pathlib.Path(name)\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    path.write_text(name)\n"
    )
    make_project(project, {"a": {"cmd": script(project, "a.py", text), "outs": ["d"]}})
    dvc(project, "repro")
    (output,) = outputs_of(None, project)
    assert output.md5 == yaml.safe_load((project / "dvc.lock").read_text())["stages"]["a"]["outs"][0]["md5"]
    assert not is_altered(output, project)
