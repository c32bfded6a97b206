"""Work in parts: by this process, and by workers on a local Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.method.grid import parts_of
from tasks.method.pairs import every_pair
from tasks.models.products import linear
from tasks.runtime.cluster import RayPool, WorkStealingQueue, _Actor, resources_per_worker
from tasks.runtime.errors import InputError
from tasks.runtime.files import sha256_file
from tasks.runtime.journal import Journal
from tasks.runtime.work import WorkerPool, run_parts, worker_pool
from tasks.steps.prune import prune
from tasks.steps.sample import sample
from tasks.steps.score import score
from tasks.steps.search import grid_of, search
from tasks.steps.transfer import transfer
from tests.runtime.squares import Squares
from tests.steps.test_steps import data, model, write_project

ROOT = Path(__file__).parents[2]


# -- whoever computes -------------------------------------------------------------------------------------------------


def test_parts_of_the_journal_are_not_computed_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "key")
    journal.put("2", "from the journal")
    counts: list[int] = []
    with worker_pool(Squares) as workers:
        assert workers.attribute("names") == ("square",)
        assert run_parts(workers, [3, 2, 1], journal, counts.append) == {3: 9, 2: "from the journal", 1: 1}
    assert counts == [1, 1, 1]


@pytest.mark.parametrize("text", ["two", "-1", "1.5", "²"])
def test_a_wrong_number_of_workers_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_WORKERS", text)
    with (
        pytest.raises(InputError, match=f"DSM_WORKERS: must be a whole number from 0, not '{text}'"),
        worker_pool(Squares),
    ):
        pass


@pytest.mark.parametrize("text", ["", "0"])
def test_without_workers_ray_is_not_imported(text: str) -> None:
    code = "import sys; from tasks.runtime.work import worker_pool\n"
    code += "with worker_pool(object): assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "DSM_WORKERS": text}, cwd=ROOT, check=True)


def test_without_ray_the_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_WORKERS", "2")
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"^DSM_WORKERS: needs Ray: pip install dsm-pruning\[ray\]$"),
        worker_pool(Squares),
    ):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_WORKERS", "2")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"^RAY_ADDRESS: {address} cannot be reached: "), worker_pool(Squares):
        pass


def test_each_worker_holds_a_gpu_or_its_share_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSM_DEVICE", raising=False)
    node = {"CPU": 3.0, "memory": 1e9}
    assert resources_per_worker([node, node], 2) == {"num_cpus": 3, "num_gpus": 0}
    assert resources_per_worker([node, node], 3) == {
        "num_cpus": 1,
        "num_gpus": 0,
    }  # 2 + 2 CPUs do not fit a node
    assert resources_per_worker([node | {"GPU": 2.0}, node], 2) == {"num_cpus": 1, "num_gpus": 1}
    with pytest.raises(InputError, match="DSM_WORKERS: 3 workers, but there are 2 GPUs"):
        resources_per_worker([node | {"GPU": 2.0}, node], 3)
    with pytest.raises(InputError, match="DSM_WORKERS: 7 workers, but there are 6 CPUs"):
        resources_per_worker([node, node], 7)
    monkeypatch.setenv("DSM_DEVICE", "cpu")
    assert resources_per_worker([node | {"GPU": 2.0}, node], 6) == {"num_cpus": 1, "num_gpus": 0}


@given(st.integers(0, 60), st.integers(1, 5), st.data())
def test_the_queue_gives_every_part_once_and_mostly_neighbours(parts: int, takers: int, data: st.DataObject) -> None:
    queue, taken = WorkStealingQueue(range(parts), takers), {taker: [] for taker in range(takers)}
    busy = list(range(takers))
    while busy:
        taker = data.draw(st.sampled_from(busy))
        if part := queue.take(taker):
            taken[taker] += part
        else:
            busy.remove(taker)
    assert sorted(part for own in taken.values() for part in own) == list(range(parts))
    jumps = sum(later != earlier + 1 for own in taken.values() for earlier, later in pairwise(own))
    assert jumps <= takers * max(1, parts).bit_length()


# -- on Ray -----------------------------------------------------------------------------------------------------------


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_WORKERS", "2")
    monkeypatch.setenv("DSM_DEVICE", "cpu")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="class")
def ray_pool() -> Iterator[WorkerPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSM_WORKERS", "2")
        patch.delenv("RAY_ADDRESS", raising=False)
        before = signal.getsignal(signal.SIGTERM)
        with worker_pool(Squares) as workers:
            yield workers
    assert signal.getsignal(signal.SIGTERM) == before
    assert not [process for process in descendants() if "ray" in process.name()]


@pytest.mark.real
class TestRayPool:
    def test_workers_give_what_this_process_gives(self, ray_pool: WorkerPool) -> None:
        assert ray_pool.attribute("names") == ("square",)
        assert dict(ray_pool.compute(range(20))) == {i: i * i for i in range(20)}
        assert dict(ray_pool.compute([])) == {}

    def test_a_part_whose_worker_is_killed_is_tried_again(self, ray_pool: WorkerPool, tmp_path: Path) -> None:
        parts = [0, 1, tmp_path / "died", 2, 3]
        assert dict(ray_pool.compute(parts)) == {0: 0, 1: 1, tmp_path / "died": "alive", 2: 4, 3: 9}

    def test_bad_input_of_a_worker_is_the_same_line_here(self, ray_pool: WorkerPool) -> None:
        with pytest.raises(InputError) as caught:
            list(ray_pool.compute(["refuse"]))
        assert (str(caught.value), caught.value.field) == ("params.field: is wrong", "params.field")

    def test_other_errors_are_those_of_the_worker(self, ray_pool: WorkerPool) -> None:
        with pytest.raises(ArithmeticError, match=r"^cannot square a circle$"):
            list(ray_pool.compute(["a circle"]))
        with pytest.raises(FileNotFoundError) as caught:
            list(ray_pool.compute(["missing"]))
        assert caught.value.filename == "rows.jsonl"

    def test_it_listens_on_this_machine_alone(self, ray_pool: WorkerPool) -> None:
        listening = [
            connection.laddr.ip
            for process in descendants()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}

    def test_a_part_that_always_kills_its_worker_is_given_up(self, ray_pool: WorkerPool) -> None:
        with pytest.raises(RuntimeError, match="the workers that computed die died 4 times"):
            list(ray_pool.compute(["die"]))
        assert dict(ray_pool.compute([5, 6])) == {5: 25, 6: 36}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)  # Ray starts three times
def test_two_workers_of_which_one_is_killed_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_workers: None
) -> None:
    others = set(descendants())  # processes of other tests, such as a Prefect server
    cell = write_project(tmp_path)
    outputs = [cell.scores, cell.grid, cell.pruned, cell.transfer_grid, cell.transfer]
    steps = [score, search, prune, transfer]
    with monkeypatch.context() as patch:
        patch.delenv("DSM_WORKERS")
        for step in [model, data, sample, *steps]:
            step(cell)
    here = list(map(sha256_file, outputs))
    for path in outputs:
        path.unlink()
    put, killed = Journal.put, []

    def kills_at_the_second(self: Journal, name: str, value: object) -> None:
        put(self, name, value)
        if len(self.parts) == 2 and self not in killed:
            worker = next(process for process in descendants() if process.name().startswith("ray::_Actor"))
            worker.kill()
            killed.append(self)

    monkeypatch.setattr(Journal, "put", kills_at_the_second)
    for step in steps:
        step(cell)
    assert list(map(sha256_file, outputs)) == here
    assert len(killed) == 3  # one in each step but prune
    assert set(descendants()) <= others


DRIVER = """
import time
from tasks.runtime.work import worker_pool
with worker_pool(object) as workers:
    workers.attribute("__class__")
    print("ready", flush=True)
    time.sleep(100)
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("how", "code"), [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGKILL, -9)]
)
def test_nothing_outlives_a_driver_that_is_ended(how: signal.Signals, code: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"DSM_WORKERS": "2", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    if len(str(tmp_path)) > 40:  # sockets are there, and their paths have a maximum length
        del environment["TMPDIR"]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        left = psutil.Process(driver.pid).children(recursive=True)
        assert len(left) > 4
        time.sleep(1.5)  # the keeper checks once a second
        driver.send_signal(how)
        assert driver.wait(30) == code
    _, left = psutil.wait_procs(left, timeout=10)
    assert left == []
    assert list(tmp_path.iterdir()) == []


# -- the same bytes ---------------------------------------------------------------------------------------------------


def test_values_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    cell = write_project(tmp_path)
    for step in [model, data, sample, score]:
        step(cell)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            score(cell)
            grid = grid_of(cell, cell.samples)
            parts = parts_of(every_pair(3, (0.1, 0.4)), len(grid.sizes))
            found.append((sha256_file(cell.scores), [grid.compute(part) for part in parts]))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 48), (576, 1536), (1536, 576)])
def test_a_row_does_not_depend_on_how_many_are_multiplied_with_it(inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, inputs, generator=generator) for n in (33, outputs))
    whole = linear(x, weight)
    for rows in (1, 2, 3, 8, 16):
        assert linear(x[:rows], weight).numpy().tobytes() == whole[:rows].numpy().tobytes()
    assert linear(x[None, :1], weight).shape == (1, 1, outputs)


class Reference:
    def __init__(self, result: object) -> None:
        self.result = result


class FakeRay:
    """Calls that are executed at once, in this process."""

    class exceptions:
        RayTaskError = RayActorError = ZeroDivisionError

    @staticmethod
    def get(value: object) -> object:
        return value.result

    @staticmethod
    def wait(values: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        return values[:1], values[1:]


class FakeActor:
    def __init__(self, worker: object) -> None:
        actor = _Actor(lambda: worker)
        for name in ("attribute", "groups", "compute"):
            call = getattr(actor, name)
            setattr(self, name, SimpleNamespace(remote=lambda *a, call=call: Reference(call(*a))))


class Pairs(Squares):
    """A worker that computes two neighbours at once."""

    def together(self, parts: list[int]) -> list[list[int]]:
        return [parts[i : i + 2] for i in range(0, len(parts), 2)]

    def compute_together(self, group: list[int]) -> list[object]:
        assert len(group) <= 2
        return [self.compute(part) for part in group]


@pytest.mark.parametrize("make", [Squares, Pairs])
def test_groups_of_parts_are_computed_by_workers_and_here(make: type, tmp_path: Path) -> None:
    expected = {i: i * i for i in range(7)}
    with worker_pool(make) as here:
        assert run_parts(here, list(range(7)), Journal(tmp_path / "journal", "key")) == expected
    workers = RayPool(FakeRay, [FakeActor(make()), FakeActor(make())])
    assert workers.attribute("names") == ("square",)
    assert dict(workers.compute(list(range(7)))) == expected
    assert dict(workers.compute([])) == {}
    with pytest.raises(InputError, match="is wrong"):
        list(workers.compute(["refuse"]))


def test_one_gpu_of_several_is_refused_beside_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_DEVICE", "cuda:1")
    with pytest.raises(InputError, match=r"^DSM_DEVICE: cuda:1 is one GPU, but each worker holds one of its own"):
        resources_per_worker([{"CPU": 8.0, "GPU": 2.0}], 1)
