"""Which Prefect server is used, and the messages about one that cannot be used."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import prefect
import pytest
import yaml
from filelock import FileLock
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import check_server, needs_server, start_server
from flows.stages import StepFailed
from tasks.runtime.errors import InputError
from tests.cells import settings
from tests.flows.stand_in_project import REAL, cell_project, ran
from tests.flows.test_cli import dsm
from tests.servers import Server, free_port


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """The address of a server on 127.0.0.1 that gives this answer to every GET."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.fixture
def dead() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/api"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, "", "refuses with status 401: PREFECT_API_AUTH_STRING or PREFECT_API_KEY must be"),
        (403, "", "refuses with status 403"),
        (404, "", "answers with status 404, not as Prefect's API does; its address usually ends with /api"),
        (503, "", "answers with status 503"),
        (200, "<html></html>", "answers, but not as Prefect's API does"),
        (200, "{}", "answers, but not as Prefect's API does"),
        (200, '"none"', "answers, but not as Prefect's API does"),
        (200, '"2.20.0"', "Found incompatible versions"),
    ],
)
def test_a_server_that_is_not_prefects_or_refuses(status: int, body: str, told: str) -> None:
    with (
        answering(status, body) as url,
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(StepFailed) as caught,
    ):
        check_server()
    assert str(caught.value).startswith(f"prefect: {url} (PREFECT_API_URL")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, json.dumps(prefect.__version__)) as url, temporary_settings({PREFECT_API_URL: url}):
        start_server("tiny on reviews")
        needs_server()
    assert capsys.readouterr().out.startswith(f"tiny on reviews, with the Prefect server at {url} (PREFECT_API_URL")


def test_a_server_that_is_gone(dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = dead.replace("//", "//me:secret@")
    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(StepFailed) as caught:
        check_server()
    assert str(caught.value).startswith(f"prefect: no server answers at {dead} (PREFECT_API_URL): ")


@pytest.mark.parametrize(
    "url", ["localhost:4200", "4200", "ftp://127.0.0.1/api", "http://", "http://127.0.0.1:port/api"]
)
def test_an_address_that_is_none(url: str) -> None:
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(InputError) as caught:
        check_server()
    assert str(caught.value).startswith("PREFECT_API_URL: must be an address such as http://127.0.0.1:4200/api, not ")


@pytest.mark.parametrize(
    ("command", "by"),
    [
        ("run", "profile"),
        ("serve", "variable"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("run", "variable"), ("serve", "profile"), ("deploy", "profile"), ("deploy", "variable"))
        ),
    ],
)
def test_a_dead_server_is_one_line(project: Path, dead: str, by: str, command: str) -> None:
    cell_project(project)
    retrain = {"schedules": {"nightly": {"cron": "0 3 * * 1"}}}
    (project / "params.yaml").write_text(yaml.safe_dump(settings() | {"retrain": retrain}))
    home = project / "prefect"
    home.mkdir()
    variables = {"PREFECT_HOME": str(home)}
    if by == "profile":
        text = f'active = "shared"\n\n[profiles.shared]\nPREFECT_API_URL = "{dead}"\n'
        (home / "profiles.toml").write_text(text)
        named = "PREFECT_API_URL of the Prefect profile 'shared'"
    else:
        variables |= {"PREFECT_API_URL": dead}
        named = "PREFECT_API_URL"
    told = dsm(command, **variables)
    assert told.returncode == 1, told.stderr
    assert told.stderr.splitlines()[-1].startswith(f"failed: prefect: no server answers at {dead} ({named}): ")
    assert told.stderr.count("\n") == 1
    if command == "run":
        assert told.stdout.splitlines()[-1] == f"tiny on reviews, with the Prefect server at {dead} ({named})"
    assert ran(project) == []
    assert not (project / "prefect.yaml").exists()


def scheduled(project: Path) -> Path:
    """A project with one schedule that is not due during a test."""
    cell_project(project)
    retrain = {"schedules": {"yearly": {"cron": "0 3 1 1 *"}}}
    (project / "params.yaml").write_text(yaml.safe_dump(settings() | {"retrain": retrain}))
    return project


def test_a_second_serve_is_refused(project: Path) -> None:
    scheduled(project)
    (project / "data" / "scratch").mkdir(parents=True)
    with FileLock(project / "data" / "scratch" / "serve.lock"), answering(200, json.dumps(prefect.__version__)) as url:
        told = dsm("serve", PREFECT_API_URL=url)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == ("failed: serve: another `dsm serve` runs the schedules of this project; stop it first\n")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_how_it_leaves_the_deployments(project: Path, tmp_path: Path, end: signal.Signals) -> None:
    scheduled(project)
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = Server(command, port=port, alive="/api/health", where=tmp_path, PREFECT_HOME=str(tmp_path / "prefect"))
    url = f"{server.address}/api"

    def paused() -> bool | None:
        found = httpx.get(f"{url}/deployments/name/retrain/yearly", timeout=30)
        return found.json()["paused"] if found.status_code == 200 else None

    def serve() -> list[str]:
        """Serves until the schedule is active, then stops the server; returns its output."""
        serving = subprocess.Popen(
            [sys.executable, "-c", "from flows.cli import app; app()", "serve"],
            env={**os.environ, "PYTHONPATH": str(REAL), "PREFECT_API_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            give_up = time.monotonic() + 120
            while paused() is not False:
                assert serving.poll() is None, serving.communicate()
                assert time.monotonic() < give_up
                time.sleep(0.2)
            time.sleep(2)  # until it has its signal handler
            serving.send_signal(end)
            out, _ = serving.communicate(timeout=60)
        finally:
            serving.kill()
        return out.splitlines()

    try:
        for _ in range(2):  # the second one makes the paused schedule active again
            lines = serve()
            assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines), lines
            assert [line[20:] for line in lines] == [
                f"serving, with the Prefect server at {url} (PREFECT_API_URL)",
                "retrain/yearly: 0 3 1 1 * UTC",
                "retrain/yearly: paused until the next `dsm serve`",
            ]
            assert paused() is True
    finally:
        server.end()
