"""From schedules in params.yaml to prefect.yaml, and what is refused before a server is contacted."""

import importlib
import pkgutil
from pathlib import Path

import pytest
import yaml
from prefect import Flow

import flows
from flows.deployments import FLOWS, check_schedules, prefect_yaml, served
from tasks.pipeline.settings import Settings, load_settings, parse_settings
from tasks.runtime.errors import InputError
from tests.cells import pipeline, settings
from tests.flows.stand_in_project import REAL
from tests.flows.test_cli import call, dsm


def with_schedule(**schedule: object) -> Settings:
    retrain = {"schedules": {"nightly": schedule}}
    return parse_settings(yaml.safe_dump(settings() | {"retrain": retrain}))


def test_prefect_yaml_is_what_params_yaml_says() -> None:
    """After an edit of `retrain` in params.yaml: run `dsm deploy`, or write the output of `prefect_yaml`."""
    assert (REAL / "prefect.yaml").read_text() == prefect_yaml(load_settings(REAL))


def test_dead_runs_of_every_flow_are_looked_for() -> None:
    modules = [importlib.import_module(f"flows.{module.name}") for module in pkgutil.iter_modules(flows.__path__)]
    named = {value.name for module in modules for value in vars(module).values() if isinstance(value, Flow)}
    assert named == set(FLOWS)


def test_a_deployment_for_each_schedule() -> None:
    made = with_schedule(cron="*/5 * * * *", timezone="Europe/Berlin", benchmarks=["reviews"])
    (deployment,) = yaml.safe_load(prefect_yaml(made))["deployments"]
    assert deployment["schedules"] == [{"cron": "*/5 * * * *", "timezone": "Europe/Berlin"}]
    assert deployment["parameters"] == {"models": None, "benchmarks": ["reviews"]}
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert (REAL / deployment["entrypoint"].partition(":")[0]).exists()
    (runner,) = served(made)
    assert (runner.name, runner.parameters) == ("nightly", deployment["parameters"])
    assert runner.schedules[0].schedule.cron == "*/5 * * * *"


@pytest.mark.parametrize("cron", ["", "every day", "0 3 * *", "61 * * * *", "0 3 * * 9"])
def test_a_cron_line_that_is_none(cron: str) -> None:
    with pytest.raises(InputError, match=r"^retrain.schedules.nightly.cron: must have the five fields of cron"):
        check_schedules(with_schedule(cron=cron))


def test_names_that_no_cell_has() -> None:
    params = settings() | {"pipeline": pipeline(), "retrain": {"schedules": {"n": {"cron": "0 3 * * 1"}}}}
    check_schedules(parse_settings(yaml.safe_dump(params)))  # an empty pipeline has nothing to do and is not an error
    params["retrain"]["schedules"]["n"]["benchmarks"] = ["reviews"]
    with pytest.raises(
        InputError, match=r"^retrain.schedules.n: no cell of the pipeline is a model on reviews; the cells"
    ):
        check_schedules(parse_settings(yaml.safe_dump(params)))


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        ({"cron": "0 3 * * 1", "timezone": "Mars"}, "retrain.schedules.nightly.timezone: must be a name in the time"),
        ({"cron": "0 3 * * 1", "models": ["other"]}, "retrain.schedules.nightly.models: 'other' is not declared"),
        ({"cron": "0 3 * * 1", "every": 1}, "retrain.schedules.nightly.every: Extra inputs are not permitted"),
        ({}, "retrain.schedules.nightly.cron: Field required"),
    ],
)
def test_a_wrong_schedule_is_one_line(schedule: dict[str, object], line: str) -> None:
    with pytest.raises(InputError) as told:
        with_schedule(**schedule)
    assert line in str(told.value)


def test_validate_reads_the_cron_lines(project: Path) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(settings() | {"retrain": {"schedules": {"n": {"cron": "x"}}}}))
    code, out, err = call("validate")
    assert (code, out) == (2, "")
    assert err.startswith("error: retrain.schedules.n.cron: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "deploy"])
def test_schedules_need_a_server(project: Path, command: str) -> None:
    (project / "params.yaml").write_text(
        yaml.safe_dump(settings() | {"retrain": {"schedules": {"n": {"cron": "0 3 * * 1"}}}})
    )
    told = dsm(command, PREFECT_HOME=str(project / "prefect"))  # without a profile that names a server
    assert told.returncode == 2
    assert told.stderr.startswith("error: PREFECT_API_URL: is not set")
    assert not (project / "prefect.yaml").exists()
