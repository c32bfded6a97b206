"""Real servers for the tests: PostgreSQL on a socket, MLflow and S3 on 127.0.0.1. Each ends with its context."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2

REPOSITORY = Path(__file__).parents[1]
PATIENCE = 180.0  # seconds until a server must answer
# Without MLflow's job runner, which is not used here, a server has one process less and starts faster.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def environment(**variables: str) -> dict[str, str]:
    """The environment of a child process: this code from any directory, and only the given tracking server."""
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return inherited | QUIET | {"PYTHONPATH": str(REPOSITORY)} | variables


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """A child process that answers on 127.0.0.1, and its own children."""

    def __init__(self, command: list[str], *, port: int, alive: str, where: Path, **variables: str):
        """Starts `command` in the directory `where`; `alive` is a path that answers as soon as the server is up."""
        self.address = f"http://127.0.0.1:{port}"
        self.port = port
        self.log = where / f"server-{port}.log"
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=where, env=environment(**variables), stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._process.pid
        try:
            self._wait(self.address + alive)
        except BaseException:
            self.kill()
            raise

    def _wait(self, url: str) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            assert self._process.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"{url} does not answer: {self.log.read_text()}")

    def listens_on(self) -> set[tuple[str, int]]:
        """The addresses and ports that it and its children accept connections on."""
        root = psutil.Process(self.pid)
        sockets = [
            each for process in (root, *root.children(recursive=True)) for each in process.net_connections("inet")
        ]
        return {(each.laddr.ip, each.laddr.port) for each in sockets if each.status == psutil.CONN_LISTEN}

    def end(self) -> None:
        """Terminates it; processes that have not ended after a while are killed."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        self.kill()

    def kill(self) -> None:
        """Kills all of its processes at once, as a power failure would."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(30)


@contextmanager
def mlflow_server(store: str, artifacts: Path, where: Path, *, port: int | None = None) -> Iterator[Server]:
    """A tracking server on the database `store` that serves the files under `artifacts` itself."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", artifacts.as_uri()]
    server = Server(command, port=port, alive="/health", where=where)
    try:
        yield server
    finally:
        server.end()


@contextmanager
def s3_server(where: Path) -> Iterator[Server]:
    """An S3 service, moto's, that keeps everything in memory."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = Server(command, port=port, alive="/moto-api/", where=where)
    try:
        yield server
    finally:
        server.end()


def postgres_programs() -> Path | None:
    """The directory of PostgreSQL's server programs; Debian does not put them on the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


class Postgres:
    """A running PostgreSQL that is reachable only through a socket in a directory of its own."""

    def __init__(self, directory: Path):
        self.directory = directory

    def uri(self, database: str) -> str:
        return f"postgresql://dsm@/{database}?host={self.directory}"

    def create(self, database: str) -> str:
        """Makes an empty database; returns its address."""
        connection = psycopg2.connect(self.uri("postgres"))
        connection.autocommit = True  # a database cannot be created in a transaction
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {database}")
        return self.uri(database)


@contextmanager
def postgres_server(programs: Path) -> Iterator[Postgres]:
    """A new PostgreSQL cluster in a temporary directory. It refuses to run as root, so root runs it as `nobody`."""
    directory = Path(tempfile.mkdtemp(prefix="dsm-pg-"))  # short: the path of a socket has at most 107 characters
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data, log = directory / "data", directory / "log"
    process = None
    try:
        initdb = [programs / "initdb", "-D", data, "-U", "dsm", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        done = subprocess.run([*initdb, "--no-sync"], cwd=directory, capture_output=True, text=True, **user)
        assert done.returncode == 0, done.stderr
        command = [programs / "postgres", "-D", data, "-k", directory, "-c", "listen_addresses=", "-c", "fsync=off"]
        with log.open("w") as out:
            process = subprocess.Popen(command, cwd=directory, stdout=out, stderr=out, **user)
        server = Postgres(directory)
        until = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            try:
                psycopg2.connect(server.uri("postgres")).close()
                break
            except psycopg2.OperationalError:
                time.sleep(0.1)
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: it drops its clients
            process.wait(60)
        shutil.rmtree(directory)
