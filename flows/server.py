"""Prefect's server: the one that its settings name, or a temporary one. Its failures become messages of one line."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
from packaging.version import InvalidVersion, Version
from prefect import get_client
from prefect.context import get_settings_context
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from flows import server_keeper
from flows.places import check_prefect_home
from flows.stages import StepFailed
from tasks.runtime.errors import InputError

ADDRESS = "PREFECT_API_URL"
PATIENCE = 10.0  # seconds in which a server must answer

_keepers: "list[subprocess.Popen[bytes]]" = []  # kept, since its pipe is closed with the object


def start_server(what: str) -> None:
    """Says where the runs of `what` go; starts Prefect's temporary server, unless its settings name a real one.

    Prefect does so by itself, but in the terminal's process group: Ctrl-C would end the server together with the
    steps, and Prefect then waits for it for more than a minute. The server inherits the blocked signal of this thread.

    Raises:
        InputError: the address is not valid, or the directory of the temporary server's database cannot be written.
        StepFailed: it does not answer as Prefect's server. Prefect ends a temporary one when this process ends.
    """
    if PREFECT_API_URL.value():
        print(f"{what}, with {named_server()}", flush=True)
        check_server()
        return
    check_prefect_home()
    print(f"{what}, with a temporary Prefect server, which takes a few seconds to start", flush=True)
    os.environ[server_keeper.MARK] = str(os.getpid())
    # In a session of its own it outlives us; it ends when the pipe does, which is when we do.
    _keepers.append(
        subprocess.Popen(
            [sys.executable, str(Path(server_keeper.__file__)), str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    )
    failures: list[RuntimeError] = []

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with get_client(sync_client=True):
                pass
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join()
    if failures:  # a second attempt would leave the first server behind
        raise StepFailed("prefect", str(failures[0]))


def needs_server() -> None:
    """Checks the server that Prefect's settings name.

    Raises:
        InputError: none is named, and a temporary one would end with the command that started it.
        StepFailed: it does not answer as Prefect's server.
    """
    if not PREFECT_API_URL.value():
        raise InputError(
            ADDRESS,
            "is not set; start `prefect server start --host 127.0.0.1` and set it to http://127.0.0.1:4200/api",
        )
    check_server()


def named_server() -> str:
    """The server that Prefect's settings name, without a password, and what names it."""
    return f"the Prefect server at {_address()} ({_where_it_is_named()})"


def check_server() -> None:
    """Asks the server that Prefect's settings name for its version.

    Raises:
        InputError: its address is not valid.
        StepFailed: it does not answer, refuses, or is not Prefect's.
    """
    try:
        parts = httpx.URL(str(PREFECT_API_URL.value()))
        valid = parts.scheme in ("http", "https") and bool(parts.host)
    except httpx.InvalidURL:
        valid = False
    if not valid:
        what = f"{_address()!r} ({_where_it_is_named()})"
        raise InputError(ADDRESS, f"must be an address such as http://127.0.0.1:4200/api, not {what}")
    server = f"{_address()} ({_where_it_is_named()})"
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: PATIENCE}),
            get_client(sync_client=True) as client,
        ):
            Version(client.api_version())
            client.raise_for_api_version_mismatch_once()
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            why = f"refuses with status {status}: PREFECT_API_AUTH_STRING or PREFECT_API_KEY must be what it expects"
        else:
            why = f"answers with status {status}, not as Prefect's API does; its address usually ends with /api"
        raise StepFailed("prefect", f"{server} {why}") from error
    except httpx.TransportError as error:
        raise StepFailed("prefect", f"no server answers at {server}: {str(error) or type(error).__name__}") from error
    except (ValueError, TypeError, InvalidVersion) as error:  # no JSON, or no version
        why = "answers, but not as Prefect's API does; its address usually ends with /api"
        raise StepFailed("prefect", f"{server} {why}") from error
    except RuntimeError as error:  # another major version
        raise StepFailed("prefect", f"{server}: {error}") from error


def _address() -> str:
    """The address of the server that Prefect's settings name, without a password."""
    return re.sub(r"//[^/@]*@", "//", str(PREFECT_API_URL.value()))


def _where_it_is_named() -> str:
    """The variable, profile or file that gives the address."""
    if os.environ.get(ADDRESS):
        return ADDRESS
    profile = get_settings_context().profile
    if PREFECT_API_URL in profile.settings:
        return f"{ADDRESS} of the Prefect profile {profile.name!r}"
    return f"{ADDRESS} in Prefect's settings of this directory"
