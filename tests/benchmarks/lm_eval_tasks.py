"""Tasks of lm-evaluation-harness, read from its YAML files: the oracle of the `harness` templates."""

import importlib.util
from pathlib import Path

import jinja2
import pytest
import yaml


def harness_task(file):
    """A task by its file under lm_eval/tasks; the test is skipped if the package is not installed."""
    package = importlib.util.find_spec("lm_eval")
    if package is None:
        pytest.skip("needs lm_eval 0.4.13 installed")
    return harness_config(Path(package.submodule_search_locations[0]) / "tasks" / file)


def harness_config(path):
    """A task of lm-evaluation-harness: its YAML file on top of the files that it includes; functions are its own."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader, node):
        module, _, name = loader.construct_scalar(node).rpartition(".")
        spec = importlib.util.spec_from_file_location(module, path.parent / f"{module}.py")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return getattr(loaded, name)

    Loader.add_constructor("!function", function)
    config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    return (harness_config(path.parent / config["include"]) if "include" in config else {}) | config


def harness_value(value, row):
    """A function of the row, the name of a column, or a Jinja template, rendered as the harness renders one."""
    if callable(value):
        return value(row)
    if isinstance(value, list):
        return value
    if value in row:
        return row[value]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(value).render(**row)
