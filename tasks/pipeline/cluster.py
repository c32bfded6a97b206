"""Parts on Ray: workers that hold a GPU or some CPUs each, here or on a cluster, and keep their model loaded."""

import functools
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tasks.pipeline import keeper
from tasks.pipeline.errors import InputError
from tasks.pipeline.work import groups_of, values_of

ADDRESS = "RAY_ADDRESS"
DEVICE = "DSM_DEVICE"
TAKEN = (DEVICE, "DSM_MEMORY", "DSM_PIECES")  # variables that workers are to have, too
RETRIES = 3  # of a part whose worker died: one that always kills its worker must not be tried for ever
SCARCE = 78643200  # bytes of shared memory, the least that Ray takes: nothing large passes through it


@dataclass(frozen=True)
class _Refused:
    """An InputError on its way to the driver."""

    field: str
    problem: str


class _Actor:
    """A worker in a process of its own, made at the first call: also in the process that replaces a killed one."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._worker: Any = None

    def _answer(self, question: Callable[[Any], Any]) -> Any:
        try:
            if self._worker is None:
                self._worker = self._make()
            return question(self._worker)
        except InputError as error:
            return _Refused(error.field, error.problem)

    def ask(self, name: str) -> Any:
        return self._answer(lambda worker: getattr(worker, name))

    def groups(self, parts: Sequence[Any]) -> Any:
        return self._answer(lambda worker: groups_of(worker, parts))

    def compute(self, group: Sequence[Any]) -> Any:
        return self._answer(lambda worker: values_of(worker, group))


class Shares:
    """Parts in their order, handed out one by one to several takers, each of whom gets neighbours.

    A worker keeps what neighbouring parts have in common. So everybody starts with a stretch of the list; whoever is
    through with theirs takes the second half of the longest that is left.
    """

    def __init__(self, parts: Sequence[Any], takers: int):
        self._parts = parts
        bounds = [round(i * len(parts) / takers) for i in range(takers + 1)]
        self._left = [range(bounds[i], bounds[i + 1]) for i in range(takers)]

    def take(self, taker: int) -> list[Any]:
        """The next part for this taker, alone in a list; an empty list if none is left."""
        if not self._left[taker]:
            longest = max(range(len(self._left)), key=lambda i: len(self._left[i]))
            whole = self._left[longest]
            half = whole.start + len(whole) // 2
            self._left[longest], self._left[taker] = range(whole.start, half), range(half, whole.stop)
        own = self._left[taker]
        if not own:
            return []
        self._left[taker] = own[1:]
        return [self._parts[own[0]]]


class OnRay:
    """The crew of `tasks.pipeline.work` on Ray."""

    def __init__(self, ray: Any, actors: Sequence[Any]):
        self._ray = ray
        self._actors = actors

    def ask(self, name: str) -> Any:
        """An attribute of the worker, from the first of them; all load their model meanwhile."""
        first, *_ = [actor.ask.remote(name) for actor in self._actors]
        return self._value(first, name)

    def compute(self, parts: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Parts with their values, as they are done."""
        if not parts:
            return
        groups = self._value(self._actors[0].groups.remote(parts), "groups")
        shares = Shares(groups, len(self._actors))
        running: dict[Any, tuple[int, Any]] = {}

        def give(number: int) -> None:
            for group in shares.take(number):
                running[self._actors[number].compute.remote(group)] = number, group

        for number in range(len(self._actors)):
            give(number)
        while running:
            done, _ = self._ray.wait(list(running), num_returns=1)
            number, group = running.pop(done[0])
            give(number)  # before the driver turns to its journal
            yield from zip(group, self._value(done[0], group[0]), strict=True)

    def _value(self, reference: Any, wanted: Any) -> Any:
        try:
            value = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except self._ray.exceptions.RayActorError as error:
            raise RuntimeError(
                f"the workers that were given {wanted} died, {RETRIES + 1} times: out of memory? {error}"
            ) from error
        if isinstance(value, _Refused):
            raise InputError(value.field, value.problem)
        return value


@contextmanager
def on_ray(make: Callable[[], Any], workers: int) -> Iterator[OnRay]:
    """`workers` workers on the cluster at RAY_ADDRESS, otherwise on a Ray that is started here and ended with it.

    Raises:
        InputError: Ray is not installed, its address leads nowhere, or there is too little for so many workers.
    """
    with _own_sigterm(), _started(workers) as ray:
        signal.signal(signal.SIGTERM, _leave)
        # Ray makes OMP_NUM_THREADS of the CPUs that an actor holds.
        each = share_of([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
        there = {name: os.environ[name] for name in TAKEN if name in os.environ}  # nodes have their own environment
        actor = ray.remote(_Actor).options(
            **each, runtime_env={"env_vars": there}, max_restarts=-1, max_task_retries=RETRIES
        )
        yield OnRay(ray, [actor.remote(make) for _ in range(workers)])


def share_of(nodes: Sequence[Mapping[str, float]], workers: int) -> dict[str, int]:
    """What each worker holds: a GPU where there are any (and DSM_DEVICE is not cpu), else as many CPUs as there are.

    Raises:
        InputError: there are more workers than GPUs, or than CPUs; or DSM_DEVICE names one GPU of several.
    """
    name = os.environ.get(DEVICE) or ""
    if name.startswith("cuda:"):
        raise InputError(
            DEVICE,
            f"{name} is one GPU, but each worker holds one of its own: use cuda (CUDA_VISIBLE_DEVICES says which)",
        )
    gpus = 0 if os.environ.get(DEVICE) == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        if workers > gpus:
            raise InputError("DSM_WORKERS", f"{workers} workers, but there are {gpus} GPUs; a worker holds one")
        return {"num_cpus": 1, "num_gpus": 1}
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    for share in range(max(cpus, default=0), 0, -1):
        if sum(cpu // share for cpu in cpus) >= workers:
            return {"num_cpus": share, "num_gpus": 0}
    raise InputError("DSM_WORKERS", f"{workers} workers, but there are {sum(cpus)} CPUs; a worker holds at least one")


@contextmanager
def _started(workers: int) -> Iterator[Any]:
    """The module `ray`, connected."""
    address = os.environ.get(ADDRESS)
    quiet = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address:
        _reach(address)
        with _environment(quiet):
            ray = _import()
            try:
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise InputError(ADDRESS, f"{address}: {str(error).splitlines()[0]}") from None
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    own = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: listen on 127.0.0.1 only
        "RAY_AUTH_MODE": "token",  # nobody else on this machine may give our workers something to run
        "RAY_AUTH_TOKEN": _token(),
    }
    with _environment(quiet | own):
        ray = _import()
        with _kept() as directory:
            try:
                ray.init(
                    address="local",
                    num_cpus=max(workers, _cores()),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    object_store_memory=SCARCE,
                    _temp_dir=directory,
                )
                yield ray
            finally:
                ray.shutdown()


def _import() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("DSM_WORKERS", "needs Ray: pip install dsm-pruning[ray]") from None
    return ray


@functools.cache
def _token() -> str:
    """One for each process: Ray reads it once, also if it is started twice."""
    return secrets.token_hex(32)


def _cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reach(address: str) -> None:
    """Raises InputError if nobody listens at host:port; Ray itself would try for minutes, and not say why."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto": Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(ADDRESS, f"{address} cannot be reached: {error}") from None


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for the body; afterwards they are as before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _kept() -> Iterator[str]:
    """A directory for a local Ray, whose processes end with the body, whatever ends it: see `tasks.pipeline.keeper`."""
    # A short path, since Ray puts sockets there; the keeper removes it.
    directory = tempfile.mkdtemp(prefix="dsm-ray-", dir=os.environ.get("TMPDIR") or "/tmp")
    argv = [sys.executable, str(Path(keeper.__file__)), directory]
    # In a session of its own it outlives the end of our process group.
    with subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True):
        yield directory
        # Popen closes the pipe and waits, also after an exception.


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Afterwards SIGTERM does what it did before: Ray puts a handler of its own in its place."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _: FrameType | None) -> None:
    """Ends the process by an exception, so that what was started is ended too."""
    sys.exit(128 + number)
