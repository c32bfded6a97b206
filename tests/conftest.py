"""The order of the files, what no test may leave behind, and servers that several use: started by the first to ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Postgres, Server, mlflow_server, postgres_programs, postgres_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests may take the longest come first, so that none still works when all others are done."""
    longest: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0.0), mark.args[0] if mark else 0.0)
    items.sort(key=lambda item: -longest[item.path])


@pytest.fixture(autouse=True)
def _where_it_began() -> Iterator[None]:
    """A test that leaves the process in another directory fails, not one of those behind it."""
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
