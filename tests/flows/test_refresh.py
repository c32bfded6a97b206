"""The pins of a benchmark's sources follow the content of the sources."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flows.refresh import is_unpinned, refresh
from tasks.pipeline.settings import load_settings
from tasks.runtime.errors import InputError
from tasks.runtime.files import sha256_file, write_text
from tests.cells import SHA, settings

HUB = {"kind": "hub", "id": "someone/reviews", "revision": "a" * 40, "split": "train"}


def project_with(root: Path, **benchmark: object) -> None:
    params = settings()
    params["benchmarks"]["reviews"] |= benchmark
    write_text(root / "params.yaml", "# kept\n" + yaml.safe_dump(params))


def test_new_bytes_of_a_file_move_its_pin_and_nothing_else(project: Path) -> None:
    project_with(project)
    write_text(project / "reviews.csv", "text,label\na,0\n")
    before = load_settings(project)
    now = sha256_file(project / "reviews.csv")
    assert refresh(project, "reviews") == [f"train.source.sha256: {SHA} -> {now}"]
    text = (project / "params.yaml").read_text()
    assert text.startswith("# kept\n")
    after = load_settings(project)
    assert after.benchmarks["reviews"].train.source.sha256 == now
    assert after.model_dump() | {"benchmarks": {}} == before.model_dump() | {"benchmarks": {}}
    assert refresh(project, "reviews") == []
    assert (project / "params.yaml").read_text() == text


def test_a_missing_file_is_told_and_nothing_is_written(project: Path) -> None:
    project_with(project)
    text = (project / "params.yaml").read_text()
    with pytest.raises(InputError, match=r"^benchmarks.reviews.train.source.path: no such file or directory"):
        refresh(project, "reviews")
    assert (project / "params.yaml").read_text() == text


def test_a_new_commit_on_the_hub_moves_the_revision(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project_with(project, train={"source": HUB, "fields": {"text": "{{ text }}"}, "gold": "{{ label }}"})
    asked = []

    def dataset_info(self: object, name: str) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(sha="b" * 40)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    assert refresh(project, "reviews") == [f"train.source.revision: {'a' * 40} -> {'b' * 40}"]
    assert refresh(project, "reviews") == []
    assert asked == ["someone/reviews"] * 2


def test_a_hub_that_does_not_answer_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project_with(project, train={"source": HUB, "fields": {"text": "{{ text }}"}, "gold": "{{ label }}"})

    def fail(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    with pytest.raises(InputError, match="cannot ask the hub for someone/reviews: no route to host"):
        refresh(project, "reviews")


def test_benchmarks_of_the_library_keep_their_pins(project: Path) -> None:
    params = settings()
    params["benchmarks"] |= {
        "sst2": {"spec": "sst2", "limits": {"test": 10, "transfer": 0}},
        "local": {"spec": "sst2", "data": "rows", "limits": {"test": 10, "transfer": 0}},
    }
    write_text(project / "params.yaml", yaml.safe_dump(params))
    assert refresh(project, "sst2") == refresh(project, "local") == []
    assert not is_unpinned(project, "sst2")
    assert is_unpinned(project, "local")  # read again each time: params.yaml has no hash of these files
