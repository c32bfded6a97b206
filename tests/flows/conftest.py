import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.environment import prepare
from flows.stages import STEPS
from tests.conftest import copy_of, made_once
from tests.flows.stand_in_project import cell_project, dvc, ran


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Disables telemetry, and hides the machine's own DVC settings and hashes."""
    # A shell starts background jobs with SIGINT ignored, and their children inherit that: the tests send it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "DSM_STEP_TIMEOUT", "DSM_FLOW_PID"):
            patch.delenv(name, raising=False)
        patch.setenv("DO_NOT_TRACK", "1")
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def _prefect() -> Iterator[None]:
    """A temporary Prefect server."""
    prepare()
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def said() -> list[str]:
    """The lines of a step: give its `append` as the log."""
    return []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which is the working directory."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def finished_stand_ins(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`project` with stand-ins for all steps, which have run."""

    def make(root: Path) -> None:
        cell_project(root)
        dvc(root, "repro")
        assert sorted(ran(root)) == sorted(STEPS)

    return copy_of(made_once(tmp_path_factory, "stand-ins", make), project)
