"""The examples in docstrings that need no model give the output that they show."""

import doctest
import importlib

import pytest


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
