"""Directories outside the project that cannot be used give one error line, before Prefect or DVC access them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flows.places import check_places, check_project
from tasks.runtime.errors import InputError
from tests.flows.stand_in_project import REAL, cell_project, ran
from tests.flows.test_cli import dsm

NOWHERE = "/dev/null/x"  # below a file: not even root can create it


@pytest.fixture(autouse=True)
def _usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_PROFILES_PATH", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (
            {"HOME": NOWHERE},
            f"PREFECT_HOME: {NOWHERE}/.prefect, where Prefect keeps its database, cannot be written (Not",
        ),
        (
            {"PREFECT_HOME": NOWHERE},
            f"PREFECT_HOME: {NOWHERE}, where Prefect keeps its database, cannot be written (Not",
        ),
        (
            {"PREFECT_HOME": "/dev/null"},
            "PREFECT_HOME: /dev/null, where Prefect keeps its database, cannot be written (",
        ),
        ({"PREFECT_HOME": "/proc/1"}, "PREFECT_HOME: /proc/1, where Prefect keeps its database, cannot be written ("),
        (
            {"DVC_SITE_CACHE_DIR": NOWHERE},
            f"DVC_SITE_CACHE_DIR: {NOWHERE}, where DVC keeps its index, cannot be written",
        ),
        (
            {"DVC_GLOBAL_CONFIG_DIR": NOWHERE},
            f"DVC_GLOBAL_CONFIG_DIR: {NOWHERE}, where DVC looks for the user's settings",
        ),
    ],
)
def test_what_cannot_be_used_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    monkeypatch.delenv("DVC_GLOBAL_CONFIG_DIR")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        check_places(project)
    assert str(caught.value).startswith(told)


def test_what_is_there_or_can_be_made_is_fine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_places(project)
    assert (Path(os.environ["HOME"]) / ".prefect").is_dir()  # Prefect does not create the directories above it
    monkeypatch.setenv("PREFECT_HOME", str(project / "a" / "b"))
    check_places(project)
    assert list((project / "a" / "b").iterdir()) == []


def test_the_projects_own_directory_of_dvcs_index(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR")
    (project / ".dvc").mkdir()
    (project / ".dvc" / "config").write_text(f"[core]\n    site_cache_dir = {NOWHERE}\n")
    with pytest.raises(InputError, match=f"DVC_SITE_CACHE_DIR: {NOWHERE}, where"):
        check_places(project)
    (project / ".dvc" / "config").write_text("[core]\n    site_cache_dir = index\n")
    check_places(project)


def test_a_server_needs_no_home(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", NOWHERE)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    check_places(project)


def test_home_unset(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without an entry in the user database
    with pytest.raises(InputError, match=r"^HOME: is not set, and this user has no home directory; set HOME"):
        check_places(project)
    monkeypatch.setenv("PREFECT_HOME", str(project / "prefect"))
    check_places(project)


def test_no_temporary_directory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(InputError, match=r"^TMPDIR: no directory for temporary files can be written"):
        check_places(project)


@pytest.mark.parametrize("command", [["run"], ["study", "timing"], ["sparsify", "wanda"], ["retrain"]])
def test_the_commands_say_so_at_once(project: Path, command: list[str]) -> None:
    cell_project(project)
    before = (project / "params.yaml").read_bytes()
    told = dsm(*command, HOME=NOWHERE)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"error: PREFECT_HOME: {NOWHERE}/.prefect, ")
    assert told.stderr.count("\n") == 1
    assert ran(project) == []
    assert (project / "params.yaml").read_bytes() == before


def test_it_is_seen_before_prefect_is_imported() -> None:
    """The reason that the check is fast; no time has to be measured."""
    code = (
        "import sys; from flows.environment import prepare; from tasks.runtime.errors import InputError\n"
        "try: prepare()\nexcept InputError: print('prefect' in sys.modules)"
    )
    env = {**os.environ, "HOME": NOWHERE}
    done = subprocess.run([sys.executable, "-c", code], cwd=REAL, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["a?b", "a{b", "b}", "a%20b"])
def test_a_path_in_which_dvc_or_the_database_fails_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(cell_project(tmp_path / name))
    told = dsm("run")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"error: project: the path '{tmp_path / name}")
    assert told.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name == "a?b":  # a server does not have this problem
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
        check_project(tmp_path / name)
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        told = dsm("ui")
        assert told.returncode == 2
        assert told.stderr.startswith("error: project: the path ")


def test_prefects_database_in_such_a_path(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(project / "a?b"))
    with pytest.raises(InputError, match=r"^PREFECT_HOME: .* has a '\?'"):
        check_places(project)


@pytest.mark.parametrize("name", ["a#b", "a%b", "a b", "a'b", 'a"b', "a\\b", "a[b]", "a*b", "\u00e4"])
def test_any_other_path_is_no_trouble(tmp_path: Path, name: str) -> None:
    check_project(tmp_path / name)
