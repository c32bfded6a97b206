"""`dsm verify`: outputs that are whole, damaged, restorable or lost."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.flows.stand_in_project import dvc, make_project
from tests.flows.test_cli import call

REPORT, GRID = "data/cells/tiny/reviews/report.html", "data/cells/tiny/reviews/grid.parquet"
MODEL = "data/models/tiny"
LISTINGS = ".dvc/cache/files/md5"
LOST = "neither here nor in DVC's cache"


def md5(text: bytes) -> str:
    return hashlib.md5(text, usedforsecurity=False).hexdigest()


def keep(root: Path, text: bytes) -> str:
    """Puts a file into DVC's cache."""
    name = md5(text)
    path = root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return name


@pytest.fixture
def stored(project: Path) -> Path:
    """Two files and a directory in the working directory, as DVC stores them."""
    make_project(project, {})
    outs = []
    for name, text in ((REPORT, b"report"), (GRID, b"grid")):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(text)
        outs.append({"path": name, "hash": "md5", "md5": keep(project, text)})
    entries = []
    for name in ("a/b", "config.json"):
        path = project / MODEL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        entries.append({"md5": keep(project, name.encode()), "relpath": name})
    listing = json.dumps(entries, sort_keys=True).encode()
    found = keep(project, listing)
    (project / LISTINGS / found[:2] / found[2:]).rename(project / LISTINGS / found[:2] / f"{found[2:]}.dir")
    outs.insert(0, {"path": MODEL, "hash": "md5", "md5": f"{found}.dir"})
    stages = {"all": {"cmd": "true", "outs": outs}}
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    return project


def cached(root: Path, name: str) -> Path:
    """The file of an output in DVC's cache."""
    outs = yaml.safe_load((root / "dvc.lock").read_text())["stages"]["all"]["outs"]
    (name,) = [out["md5"] for out in outs if out["path"] == name]
    return root / LISTINGS / name[:2] / name[2:]


def test_dvc_agrees_that_the_project_is_whole(stored: Path) -> None:
    shutil.rmtree(stored / "data")
    run = {"stages": {"all": {"cmd": "true", "outs": [MODEL, REPORT, GRID]}}}
    (stored / "dvc.yaml").write_text(yaml.safe_dump(run))
    dvc(stored, "checkout")
    assert call("verify") == (0, "3 outputs match dvc.lock\n", "")


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def test_what_is_gone_is_told_apart_from_what_dvc_brings_back(stored: Path) -> None:
    assert call("verify") == (0, "3 outputs match dvc.lock\n", "")
    remove(stored / REPORT)
    remove(stored / MODEL)
    code, out, err = call("verify")
    assert (code, out.splitlines()) == (
        1,
        [f"{stored / MODEL}: not here, but in DVC's cache", f"{stored / REPORT}: not here, but in DVC's cache"],
    )
    assert err == ("failed: verify: 1 of 3 outputs match dvc.lock; 2 that `dvc checkout` or `dsm run` brings back\n")
    code, out, as_told = call("verify", "--json")
    looked = {one.pop("path"): one for one in json.loads(out)}
    whole = {"whole": True, "damaged": {}, "restorable": [], "lost": []}
    assert (code, as_told, set(looked)) == (1, err, {MODEL, REPORT, GRID})
    assert looked[GRID] == whole
    assert looked[REPORT] == whole | {"whole": False, "restorable": [str(stored / REPORT)]}
    remove(cached(stored, REPORT))
    code, out, err = call("verify")
    assert (code, out.splitlines()[1]) == (1, f"{stored / REPORT}: {LOST}")
    assert err == (
        "failed: verify: 1 of 3 outputs match dvc.lock; 0 with damaged files, which must be removed; "
        "1 with files that are neither here nor in DVC's cache; 1 that `dvc checkout` or `dsm run` brings back\n"
    )


def test_nothing_is_left(stored: Path) -> None:
    remove(stored / "data")
    code, out, err = call("verify")
    assert (code, len(out.splitlines()), "0 of 3 outputs match dvc.lock" in err) == (1, 3, True)
    remove(stored / ".dvc" / "cache")
    code, out, err = call("verify")
    assert (code, out.count(LOST), "failed: verify: 0 of 3 outputs match dvc.lock" in err) == (1, 3, True)


def test_without_a_cache_what_is_here_is_whole_and_cannot_be_brought_back(stored: Path) -> None:
    remove(stored / ".dvc" / "cache")
    code, out, err = call("verify")
    assert (code, err) == (0, "")
    assert out == "3 outputs match dvc.lock; DVC's cache lacks 3 of them\n"


def test_a_file_of_a_directory_is_gone_or_does_not_belong_there(stored: Path) -> None:
    member = stored / MODEL / "a" / "b"
    stranger = stored / MODEL / "a" / "c"
    stranger.write_text("more")
    code, out, _ = call("verify")
    assert (code, out) == (1, f"{stranger}: does not belong to {MODEL}\n")
    stranger.unlink()
    text = member.read_bytes()
    remove(member)
    assert call("verify") == (
        1,
        f"{member}: not here, but in DVC's cache\n",
        "failed: verify: 2 of 3 outputs match dvc.lock; 1 that `dvc checkout` or `dsm run` brings back\n",
    )
    for path in (stored / ".dvc" / "cache" / "files" / "md5").rglob("*"):
        if path.is_file() and path.read_bytes() == text:
            remove(path)
    assert call("verify")[:2] == (1, f"{member}: {LOST}\n")
    remove(cached(stored, MODEL))
    assert call("verify")[:2] == (1, f"{stored / MODEL}: does not match its hash in dvc.lock\n")
    remove(stored / MODEL)
    assert call("verify")[:2] == (1, f"{stored / MODEL}: {LOST}\n")


def test_a_file_where_a_directory_was_and_the_other_way_round(stored: Path) -> None:
    for name in (MODEL, REPORT):
        remove(stored / name)
    (stored / MODEL).write_text("a file")
    (stored / REPORT).mkdir()
    code, out, _ = call("verify")
    assert code == 1
    assert out.splitlines() == [f"{stored / name}: does not match its hash in dvc.lock" for name in (MODEL, REPORT)]


@pytest.mark.parametrize("text", [None, "", "schema: '2.0'\n", "schema: '2.0'\nstages: {}\n"])
def test_an_empty_project_has_nothing_to_verify(project: Path, text: str | None) -> None:
    make_project(project, {})
    if text is not None:
        (project / "dvc.lock").write_text(text)
    code, out, err = call("verify")
    assert (code, out) == (1, "")
    assert err == "failed: verify: there is nothing to verify: dvc.lock names no outputs; `dsm run` makes some\n"


@pytest.mark.parametrize(
    "text",
    [
        "stages: [1]",
        "[]",
        "stages: {a: 1}",
        "stages: {a: {outs: [{path: b}]}}",
        "a: b: c",
        "stages: {a: {outs: 5}}",
        "5",
    ],
)
def test_a_damaged_lock_is_refused_in_one_line(project: Path, text: str) -> None:
    make_project(project, {})
    (project / "dvc.lock").write_text(text)
    code, out, err = call("verify")
    assert (code, out, len(err.splitlines()), err.startswith("error: dvc.lock: ")) == (2, "", 1, True)
