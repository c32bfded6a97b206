"""Servers that the commands start listen on 127.0.0.1 only."""

import sys
from pathlib import Path

import pytest

from tests.servers import Server, free_port

# The server that `dsm run` starts before its first step, and a page that shows when it answers.
RUN = """
import http.server, sys
from flows.environment import prepare
prepare()
from flows.server import start_server
start_server("a test")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.mark.slow
def test_the_ui_listens_on_loopback_only(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()  # it starts only in a project
    port = free_port()
    command = [sys.executable, "-c", "from flows.cli import app; app()", "ui", "--port", str(port)]
    server = Server(
        command, port=port, alive="/health", where=tmp_path, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="true"
    )  # as users start it
    try:
        assert server.listens_on() == {("127.0.0.1", port)}
    finally:
        server.end()


def test_the_temporary_prefect_server_listens_on_loopback_only(tmp_path: Path) -> None:
    port = free_port()
    server = Server([sys.executable, "-c", RUN, str(port)], port=port, alive="/", where=tmp_path)
    try:
        addresses = server.listens_on()
        assert {address for address, _ in addresses} == {"127.0.0.1"}
        assert len(addresses - {("127.0.0.1", port)}) == 1, "Prefect's server is not there"
    finally:
        server.end()
