"""A worker pool on Ray, local or on a cluster. Each worker holds a GPU or some CPUs and keeps its model loaded."""

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

from tasks.runtime import ray_watchdog
from tasks.runtime.errors import InputError
from tasks.runtime.worker import groups_of, values_of

ADDRESS = "RAY_ADDRESS"
DEVICE = "DSM_DEVICE"
PASSED_ON = (DEVICE, "DSM_MEMORY", "DSM_PIECES")  # variables that workers receive
RETRIES = 3  # of a part whose worker died; after these, the part is given up
OBJECT_STORE_BYTES = 78643200  # the minimum that Ray accepts; nothing large passes through it


@dataclass(frozen=True)
class _InputErrorFields:
    """An InputError as a value that the worker returns to the driver."""

    field: str
    problem: str


class _Actor:
    """A worker in its own process. It is created by the first call, also after Ray has restarted a killed process."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._worker: Any = None

    def _call(self, function: Callable[[Any], Any]) -> Any:
        try:
            if self._worker is None:
                self._worker = self._make()
            return function(self._worker)
        except InputError as error:
            return _InputErrorFields(error.field, error.problem)

    def attribute(self, name: str) -> Any:
        return self._call(lambda worker: getattr(worker, name))

    def groups(self, parts: Sequence[Any]) -> Any:
        return self._call(lambda worker: groups_of(worker, parts))

    def compute(self, group: Sequence[Any]) -> Any:
        return self._call(lambda worker: values_of(worker, group))


class WorkStealingQueue:
    """Distributes parts one by one to several workers.

    Neighbouring parts share data that a worker caches. So each worker starts with a contiguous range of the parts. A
    worker that has finished its range takes the second half of the longest remaining range.
    """

    def __init__(self, parts: Sequence[Any], workers: int):
        self._parts = parts
        bounds = [round(i * len(parts) / workers) for i in range(workers + 1)]
        self._remaining = [range(bounds[i], bounds[i + 1]) for i in range(workers)]

    def take(self, worker: int) -> list[Any]:
        """A list with the next part for this worker; empty if no part is left."""
        if not self._remaining[worker]:
            longest = max(range(len(self._remaining)), key=lambda i: len(self._remaining[i]))
            whole = self._remaining[longest]
            half = whole.start + len(whole) // 2
            self._remaining[longest], self._remaining[worker] = range(whole.start, half), range(half, whole.stop)
        own = self._remaining[worker]
        if not own:
            return []
        self._remaining[worker] = own[1:]
        return [self._parts[own[0]]]


class RayPool:
    """A `tasks.runtime.work.WorkerPool` on Ray."""

    def __init__(self, ray: Any, actors: Sequence[Any]):
        self._ray = ray
        self._actors = actors

    def attribute(self, name: str) -> Any:
        """An attribute of the first worker. All workers start to load their model."""
        first, *_ = [actor.attribute.remote(name) for actor in self._actors]
        return self._value(first, name)

    def compute(self, parts: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Parts with their values, in the order in which they finish."""
        if not parts:
            return
        groups = self._value(self._actors[0].groups.remote(parts), "groups")
        queue = WorkStealingQueue(groups, len(self._actors))
        running: dict[Any, tuple[int, Any]] = {}

        def submit(number: int) -> None:
            for group in queue.take(number):
                running[self._actors[number].compute.remote(group)] = number, group

        for number in range(len(self._actors)):
            submit(number)
        while running:
            done, _ = self._ray.wait(list(running), num_returns=1)
            number, group = running.pop(done[0])
            submit(number)  # before the driver writes to its journal
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
                f"the workers that computed {wanted} died {RETRIES + 1} times: out of memory? {error}"
            ) from error
        if isinstance(value, _InputErrorFields):
            raise InputError(value.field, value.problem)
        return value


@contextmanager
def ray_pool(make: Callable[[], Any], workers: int) -> Iterator[RayPool]:
    """`workers` workers on the cluster at RAY_ADDRESS; without it, on a local Ray that ends with the context.

    Raises:
        InputError: Ray is not installed, no server answers at RAY_ADDRESS, or there are too few CPUs or GPUs.
    """
    with _restoring_sigterm(), _connected(workers) as ray:
        signal.signal(signal.SIGTERM, _exit)
        # Ray sets OMP_NUM_THREADS to the number of CPUs that an actor holds.
        resources = resources_per_worker([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
        variables = {
            name: os.environ[name] for name in PASSED_ON if name in os.environ
        }  # nodes have their own environment
        actor = ray.remote(_Actor).options(
            **resources, runtime_env={"env_vars": variables}, max_restarts=-1, max_task_retries=RETRIES
        )
        yield RayPool(ray, [actor.remote(make) for _ in range(workers)])


def resources_per_worker(nodes: Sequence[Mapping[str, float]], workers: int) -> dict[str, int]:
    """The resources of each worker: one GPU if there are GPUs and DSM_DEVICE is not cpu, else its share of the CPUs.

    Raises:
        InputError: there are more workers than GPUs, or than CPUs; or DSM_DEVICE names one GPU of several.
    """
    name = os.environ.get(DEVICE) or ""
    if name.startswith("cuda:"):
        raise InputError(
            DEVICE,
            f"{name} is one GPU, but each worker holds one of its own: use cuda (CUDA_VISIBLE_DEVICES selects them)",
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
def _connected(workers: int) -> Iterator[Any]:
    """The module `ray`, connected."""
    address = os.environ.get(ADDRESS)
    quiet = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address:
        _check_reachable(address)
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
        "RAY_AUTH_MODE": "token",  # other users of this machine cannot submit code to our workers
        "RAY_AUTH_TOKEN": _token(),
    }
    with _environment(quiet | own):
        ray = _import()
        with _ray_directory() as directory:
            try:
                ray.init(
                    address="local",
                    num_cpus=max(workers, _cores()),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    object_store_memory=OBJECT_STORE_BYTES,
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
    """One token per process: Ray reads it once, even if it is started twice."""
    return secrets.token_hex(32)


def _cores() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_reachable(address: str) -> None:
    """Raises InputError if no server listens at host:port; Ray itself would retry for minutes without a reason."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # such as "auto", which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(ADDRESS, f"{address} cannot be reached: {error}") from None


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables inside the context."""
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
def _ray_directory() -> Iterator[str]:
    """A directory for a local Ray. `ray_watchdog` ends Ray and removes it, even if this process is killed."""
    # A short path, since Ray puts sockets there.
    directory = tempfile.mkdtemp(prefix="dsm-ray-", dir=os.environ.get("TMPDIR") or "/tmp")
    argv = [sys.executable, str(Path(ray_watchdog.__file__)), directory]
    # In its own session, the watchdog survives a signal to our process group.
    with subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True):
        yield directory
        # Popen closes the pipe and waits, also after an exception.


@contextmanager
def _restoring_sigterm() -> Iterator[None]:
    """Restores the SIGTERM handler at the end: Ray replaces it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: FrameType | None) -> None:
    """Ends the process by an exception, so that contexts are left and child processes end."""
    sys.exit(128 + number)
