"""Every kind of source that docs/own.md shows is read, and its bytes are the start of the computation."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tasks.models.hashing import sha256_directory
from tasks.pipeline.cell import Cell, open_cell
from tasks.pipeline.wanted import hash_of_model
from tasks.runtime.files import sha256_file
from tasks.steps.data import store as store_rows
from tasks.steps.model import store as store_model
from tests.cells import pipeline, settings
from tests.flows.stand_in_project import REAL
from tests.models.test_conversion import write_gguf
from tests.tiny import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")
ROWS = [{"question": f"Is {i} odd?", "answer": i % 2, "sentence": f"It is {i}.", "label": i % 2} for i in range(60)]


def example() -> str:
    """The block of docs/own.md with every kind of source."""
    blocks = re.findall(r"```yaml\n(.*?)```", (REAL / "docs" / "own.md").read_text(), re.DOTALL)
    (block,) = blocks
    return str(block)


DECLARED = yaml.safe_load(example())


def build_wheel(folder: Path, package: str, files: dict[str, bytes]) -> None:
    name = package.replace("-", "_")
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Cell, list[tuple[str, object]]]:
    """The project of the page: its files beside it, a directory of wheels for pip, and a fake of the hub's library."""
    model = save_tiny(tmp_path / "my-model")
    gguf = write_gguf(tmp_path / "my-model.gguf")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "quiz.jsonl").write_text(lines)
    pd.DataFrame(ROWS).to_csv(tmp_path / "quiz.csv", index=False)
    pd.DataFrame(ROWS).to_parquet(tmp_path / "quiz.parquet")
    for split in ("train", "test"):
        (tmp_path / "rows" / "sst2").mkdir(parents=True, exist_ok=True)
        chosen = [row | {"sentence": f"{split} {row['sentence']}"} for row in ROWS]
        (tmp_path / "rows" / "sst2" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    index = tmp_path / "index"
    index.mkdir()
    content = gguf.read_bytes()
    build_wheel(index, "my-weights", {"my_weights/model.gguf": content})
    build_wheel(index, "my-weights-1", {"my_weights_1/part1": content[:50_000]})
    build_wheel(index, "my-weights-2", {"my_weights_2/part2": content[50_000:]})
    build_wheel(index, "my-rows", {"my_rows/quiz.jsonl": lines.encode()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    asked: list[tuple[str, object]] = []

    def snapshot_download(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"]))
        return str(shutil.copytree(model, tmp_path / "snapshot", dirs_exist_ok=True))

    def load_dataset(repository: str, config: object, **options: object) -> list[dict[str, object]]:
        asked.append((repository, options["revision"]))
        return ROWS

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hashes = {
        "../my-model": sha256_directory(model),
        "../my-model.gguf": sha256_file(gguf),
        "model.gguf": sha256_file(gguf),
        **{f"../quiz.{kind}": sha256_file(tmp_path / f"quiz.{kind}") for kind in ("jsonl", "csv", "parquet")},
    }
    assert hash_of_model(gguf, field="path") == sha256_file(gguf)
    text = re.sub(r"<dsm hash (\S+)>", lambda match: hashes[match[1]], example())
    root = tmp_path / "work"
    root.mkdir()
    cells = pipeline(("my-directory", "quiz-jsonl"))
    (root / "params.yaml").write_text(yaml.safe_dump(settings() | yaml.safe_load(text) | {"pipeline": cells}))
    return open_cell(root=root), asked


@pytest.mark.parametrize("name", DECLARED["models"])
def test_a_model_from_every_kind_of_source(page: tuple[Cell, list[tuple[str, object]]], name: str) -> None:
    cell, asked = page
    made = open_cell(name, "quiz-jsonl", cell.root)
    store_model(made)
    assert (made.model_dir / "model.safetensors").is_file()
    source = DECLARED["models"][name]["source"]
    if name in ("my-directory", "on-the-hub"):
        assert sha256_directory(made.model_dir) == sha256_directory(cell.root.parent / "my-model")
    if source["kind"] == "hub":
        assert asked == [(source["id"], source["revision"])]


@pytest.mark.parametrize("name", DECLARED["benchmarks"])
def test_rows_from_every_kind_of_source(page: tuple[Cell, list[tuple[str, object]]], name: str) -> None:
    made = open_cell("my-directory", name, page[0].root)
    store_rows(made)
    train, test = pd.read_parquet(made.train), pd.read_parquet(made.test)
    assert (len(train) + len(test)) == (120 if name == "sst2" else 60)
    if name.startswith(("quiz", "rows")):
        assert set(train["prompt"]) | set(test["prompt"]) == {f"Question: Is {i} odd?\nAnswer:" for i in range(60)}


def test_the_page_has_every_kind() -> None:
    models = {entry["source"]["kind"] for entry in DECLARED["models"].values()}
    rows = {entry["train"]["source"]["kind"] for entry in DECLARED["benchmarks"].values() if "train" in entry}
    assert models == {"path", "wheel", "wheels", "hub"}
    assert rows == {"path", "wheel", "hub", "local"}
