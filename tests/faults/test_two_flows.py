"""Two `dsm run` on one cell at the same time: every step runs once, both succeed, MLflow has the result once."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.stages import STEPS
from tests.faults.fault_project import real_project
from tests.faults.kills import DSM, all_gone, assert_registered_once, forget, leftovers, start

pytestmark = [
    pytest.mark.real,
    pytest.mark.usefixtures("prefect_home"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_flows_on_a_cell_that_has_nothing_yet(tmp_path: Path) -> None:
    two_flows(real_project(tmp_path / "project").root, STEPS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_flows_on_one_cell(finished_root: Path) -> None:
    lost = ["prune"]
    for step in lost:
        forget(finished_root, f"{step}@tiny-reviews")
    two_flows(finished_root, lost)


def two_flows(root: Path, lost: Sequence[str]) -> None:
    """Runs both at once on a project in which these steps have to run."""
    names = ["one.txt", "two.txt"]
    processes = [start(root, *DSM, "run", said=name) for name in names]
    try:
        codes = [process.wait(1100) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    texts = [(root / name).read_text() for name in names]
    assert codes == [0, 0], texts
    lines = [line.split() for text in texts for line in text.splitlines()]
    for step in STEPS:
        assert sum(words[:2] == [step, "ran"] for words in lines) == (step in lost), (step, texts)
    tables = [text[text.index("Results on the test split") :] for text in texts]
    assert tables[0] == tables[1]
    assert_registered_once(root)
    assert leftovers(root) == []
    assert all_gone(root)
