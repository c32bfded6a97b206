"""The cells of params.yaml: `pipeline.models` x `pipeline.benchmarks`, and benchmarks taken from the library."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks.pipeline import library
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import write_text
from tasks.pipeline.settings import PARAMS, load_settings, parse_settings
from tasks.pipeline.sources import existing


def list_cell(root: Path, model: str, benchmark: str) -> list[str]:
    """Adds the two declared names to the lists of the pipeline that lack them; comments and layout stay.

    Returns:
        What was added, such as "pipeline.benchmarks: boolq".
    """
    added = []
    with edited(root) as document:
        for section, name in (("models", model), ("benchmarks", benchmark)):
            names = document["pipeline"][section]
            if name not in names:
                names.append(name)
                added.append(f"pipeline.{section}: {name}")
    return added


def list_entry(root: Path, section: str, key: str, entry: dict[str, Any]) -> str:
    """Adds an entry, on one line, to a section of params.yaml that has none of this key.

    Returns:
        What was added.

    Raises:
        InputError: the line would be wrong.
    """
    from ruamel.yaml.comments import CommentedMap

    with edited(root) as document:
        if not document.get(section):
            document[section] = CommentedMap()
        document[section][key] = _one_line(entry)
    return f"{section}.{key}: {json.dumps(entry, ensure_ascii=False)}"


def declare(root: Path, benchmark: str, *, model: str | None, data: str | None) -> str | None:
    """Adds a benchmark of the library to params.yaml, with the limits that its file suggests, if it is not there yet.

    Args:
        model: what the benchmark is for; nothing is added for a model that is not declared.
        data: the directory of its files, None for another source.

    Returns:
        What was added.

    Raises:
        InputError: `data` is given for a benchmark that is declared already, or its rows cannot be had so.
    """
    settings = load_settings(root)
    if benchmark in settings.benchmarks:
        if data is not None:
            raise InputError("data", f"benchmarks.{benchmark} is in params.yaml already; say there where its files are")
        return None
    if not library.is_benchmark(benchmark) or (model is not None and model not in settings.models):
        return None  # `open_cell` tells
    spec, _ = library.member(benchmark, field="benchmarks")
    entry: dict[str, Any] = {"spec": benchmark, "limits": dict(spec.limits)} | ({"data": data} if data else {})
    written = library.expand(entry, field=f"benchmarks.{benchmark}")
    for split in ("train", "test"):
        for path in written[split].get("source", {}).get("paths", ()):
            existing(path, field="data", root=root)
    with edited(root) as document:
        document["benchmarks"][benchmark] = _one_line(entry)
    return f"benchmarks.{benchmark}: {json.dumps(entry, ensure_ascii=False)}"


def file_name(file: str, parts: int, *, suffix: bool = False) -> str:
    """A name made of the last parts of a file's path, such as c4-test of c4/test.jsonl; with its suffix where asked."""
    path = Path(file) if suffix else Path(file).with_suffix("")
    return re.sub(r"[^\w-]", "_", "-".join(path.parts[-parts:]), flags=re.ASCII).lstrip("_-")


def _one_line(value: dict[str, Any]) -> Any:
    from ruamel.yaml.comments import CommentedMap

    line = CommentedMap({key: _one_line(item) if isinstance(item, dict) else item for key, item in value.items()})
    line.fa.set_flow_style()
    return line


@contextmanager
def edited(root: Path) -> Iterator[Any]:
    """The document of params.yaml; what was changed in it is checked and written at the end, comments as they were."""
    from ruamel.yaml import YAML

    path = root / PARAMS
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**31  # a prompt stays on its line
    scratch = root / "data" / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with FileLock(scratch / f"{PARAMS}.lock"):  # of two runs that start at once, neither loses the other's name
        before = path.read_text(encoding="utf-8")
        document = yaml.load(before)
        unchanged = io.StringIO()
        yaml.dump(document, unchanged)
        yield document
        text = io.StringIO()
        yaml.dump(document, text)
        if text.getvalue() != unchanged.getvalue():
            parse_settings(text.getvalue())  # refuses two cells of one name before anything is written
            write_text(path, text.getvalue())
