import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.environment import QUIET
from tasks.runtime.files import write_text
from tests.flows.conftest import _isolated  # noqa: F401 - a session fixture: nothing uses the machine's own settings
from tests.operations.operated import Operated
from tests.servers import Server, free_port


@pytest.fixture
def operated(
    request: pytest.FixtureRequest, tmp_path: Path, finished_root: Path, prefect_home: Path
) -> Iterator[Operated]:
    """A finished project whose schedule is due at New Year, unless the parameter is another cron line."""
    root = finished_root
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["retrain"] = {
        "schedules": {"often": {"cron": getattr(request, "param", "0 0 1 1 *")}},
        # Twelve rows of a random model: nothing is detectable, but the rule must still accept and reject.
        "promotion": {"alpha": 1.0, "margin": 0.9},
    }
    write_text(root / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = Server(command, port=port, alive="/api/health", where=tmp_path, PREFECT_HOME=str(prefect_home), **QUIET)
    try:
        yield Operated(root, server.address)
    finally:
        server.end()
