"""Grouping and order of tests, checks of what tests leave behind, and shared fixtures.

Servers and finished projects are made by the first test that asks for them.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from tests.servers import Postgres, Server, mlflow_server, postgres_programs, postgres_server

# Few examples, the same ones every time; `make test-slow` and `make test-all` take many new ones.
hypothesis.settings.register_profile("few", max_examples=20, derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("many", max_examples=200, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))

# Families of models for which tests run by default: a plain gate, norms after the sublayers, merged projections,
# biases without a gate, transposed matrices, experts. The others are slow.
USUAL_FAMILIES = ("llama", "gemma3", "phi3", "opt", "gpt2", "mixtral")

SERVERS = ("postgres", "_prefect")  # slow session fixtures: all tests that use one run on the same worker


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: tests wait for servers and child processes a sixth of the time."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests of unusual families slow, groups tests for pytest-xdist, and puts those that may take longest first.

    Tests that share a fixture of their module are a group, so that it is made once; the others are on their own.
    """
    tiny = sys.modules.get("tests.tiny")
    families = {*tiny.ALL, *tiny.MIXTURES} - {*USUAL_FAMILIES} if tiny else set()
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, str) and value in families for value in values):
            item.add_marker(pytest.mark.slow)
    longest: dict[str, float] = {}
    groups: dict[pytest.Item, str] = {}
    for item in items:
        definitions = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined] - pytest has no public way to ask
        server = next((name for name in SERVERS if name in definitions), None)
        shares = any(found[-1].scope in ("module", "class", "package") for found in definitions.values())
        groups[item] = server or (item.nodeid.partition("::")[0] if shares else item.nodeid)
        if groups[item] != item.nodeid:
            item.add_marker(pytest.mark.xdist_group(groups[item]))
        mark = item.get_closest_marker("timeout")
        longest[groups[item]] = max(longest.get(groups[item], 0.0), mark.args[0] if mark else 0.0)
    sizes = Counter(groups.values())
    items.sort(key=lambda item: (-longest[groups[item]], -sizes[groups[item]]))  # single tests fill the gaps at the end


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The directory that `make` filled, once for all workers of a run. Tests must not change it: use a `copy_of` it."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)
    root, done = shared / name, shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(root, ignore_errors=True)
            make(root)
            done.touch()
    return root


def copy_of(root: Path, where: Path) -> Path:
    """Copies a project, with its times and hard links, to a directory that is empty or does not exist."""
    subprocess.run(["cp", "-aT", str(root), str(where)], check=True)
    return where


@pytest.fixture(autouse=True)
def _where_it_began() -> Iterator[None]:
    """Fails a test that leaves the process in another directory, instead of a later test."""
    before = Path.cwd()
    yield
    assert Path.cwd() == before


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL on this machine (Debian: apt-get install postgresql)")
    with postgres_server(programs) as server:
        yield server


@pytest.fixture(scope="session")
def _tracking(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    where: Path = tmp_path_factory.mktemp("tracking")
    with mlflow_server(postgres.create("tracking"), where / "artifacts", where) as server:
        yield server


@pytest.fixture
def tracking(_tracking: Server) -> Iterator[Server]:
    """A tracking server on PostgreSQL with nothing in it."""
    from mlflow import MlflowClient

    yield _tracking
    client = MlflowClient(_tracking.address, _tracking.address)
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    for experiment in client.search_experiments():
        if experiment.name != "Default":  # a deleted experiment keeps its name
            client.rename_experiment(experiment.experiment_id, f"deleted {experiment.experiment_id}")
            client.delete_experiment(experiment.experiment_id)


@pytest.fixture
def prefect_home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's directory beside the project of a test, with an empty database: a server needs 4 s to make one."""

    def make(home: Path) -> None:
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        subprocess.run(command, env=os.environ | {"PREFECT_HOME": str(home)}, check=True, capture_output=True)

    return copy_of(made_once(tmp_path_factory, "prefect", make), tmp_path / "prefect")


@pytest.fixture
def finished_root(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished project on which everything is real: `tests.faults.fault_project`."""
    from tests.faults.fault_project import finished_project

    return copy_of(made_once(tmp_path_factory, "finished", finished_project), tmp_path / "project")
