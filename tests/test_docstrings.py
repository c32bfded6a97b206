"""What docstrings, comments and pages say of the code: examples that need no model, and names of modules and files."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`((?:tasks|flows|tests|bench)(?:[./]\w+)+)`")


@pytest.mark.parametrize(
    "name",
    [
        "tasks.benchmarks.benchmark_spec",
        "tasks.benchmarks.columns",
        "tasks.benchmarks.templates",
        "tasks.benchmarks.values",
        "tasks.pipeline.runs",
        "tasks.runtime.errors",
        "tasks.sources.fetch",
    ],
)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def exists(name: str) -> bool:
    """Whether a path exists, or a dotted name is a package, a module, or a name in one."""
    if "/" in name:
        return (ROOT / name).exists()
    place = ROOT
    parts = name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    module = (place / parts.pop(0)).with_suffix(".py") if parts else place / "__init__.py"
    text = module.read_text() if module.exists() else ""
    return module.exists() and all(re.search(rf"\b{part}\b", text) for part in parts)


def test_modules_and_files_that_are_named_exist() -> None:
    assert exists("tasks.method.silence.silenced")
    assert not exists("tasks.method.silence.quiet")
    assert not exists("tasks.method.quiet")
    files = [path for name in ("tasks", "flows", "tests", "bench") for path in (ROOT / name).rglob("*.py")]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.yaml"), *(ROOT / "docs").glob("*.md")]
    named = {(name, path) for path in files for name in NAMED.findall(path.read_text())}
    assert len(named) > 20
    assert [f"{path.relative_to(ROOT)}: {name}" for name, path in named if not exists(name)] == []
