"""params.yaml, validated field by field.

params.yaml contains only settings that can change a result. Device, threads and tracking address are environment
variables.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tasks.benchmarks import library
from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.method.options import Adaptation, Attribution, Search
from tasks.models.model_spec import ModelSpec
from tasks.pipeline.retraining import Retrain
from tasks.pipeline.runs import NsaRun, SparseRun, StudyRun
from tasks.runtime.errors import InputError
from tasks.runtime.fields import NAME, Seed, Strict
from tasks.runtime.yamltext import read_yaml

PARAMS = "params.yaml"
BENCHMARKS = "data/benchmarks/"  # the prefix of calibration sets that are the train prompts of a benchmark


class Precisions(Strict):
    """The precision of matrix products of pruned models, by step; see `tasks.models.products`."""

    search: Literal["float32", "bfloat16"] = "float32"
    evaluate: Literal["float32", "bfloat16"] = "float32"
    transfer: Literal["float32", "bfloat16"] = "float32"


class Evaluation(Strict):
    """The seeds of the random control; each of them gives one draw."""

    control_seeds: list[Seed] = Field(min_length=1)

    @field_validator("control_seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("holds a seed twice")
        return value


class ListedCell(Strict):
    """One model on one benchmark; both are in the lists of the pipeline."""

    model: str
    benchmark: str

    @property
    def name(self) -> str:
        return f"{self.model}-{self.benchmark}"


class Pipeline(Strict):
    """The models and benchmarks that `dvc repro` fetches and the cells that it adapts, by name."""

    models: list[str]
    benchmarks: list[str]
    cells: dict[str, ListedCell] = Field(default=None, validate_default=True)

    @field_validator("models", "benchmarks")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if twice := [name for name in value if value.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} occurs twice")
        return value

    @field_validator("cells", mode="before")
    @classmethod
    def _default_is_every_pair(cls, value: Any, info: ValidationInfo) -> Any:
        """In an older file without the list of cells, every model on every benchmark is a cell."""
        if value is not None:
            return value
        models, benchmarks = info.data.get("models", ()), info.data.get("benchmarks", ())
        cells = [ListedCell(model=model, benchmark=benchmark) for model in models for benchmark in benchmarks]
        by_name = {cell.name: cell.model_dump() for cell in cells}
        if len(by_name) < len(cells):
            raise ValueError("two cells would have the same name; rename a model or a benchmark")
        return by_name

    @field_validator("cells")
    @classmethod
    def _are_named_after_both(cls, value: dict[str, ListedCell]) -> dict[str, ListedCell]:
        for key, cell in value.items():
            if key != cell.name:
                raise ValueError(f"{key}: must be named {cell.name!r}")
        return value

    def chosen(self, models: Sequence[str] | None, benchmarks: Sequence[str] | None) -> list[ListedCell]:
        """The cells with one of these models and one of these benchmarks; None or an empty list means any."""
        return [
            cell
            for cell in self.cells.values()
            if (not models or cell.model in models) and (not benchmarks or cell.benchmark in benchmarks)
        ]


def in_file(name: str) -> str:
    """The form of a model's or benchmark's name in params.yaml, with _ for every dot."""
    return name.replace(".", "_")


class Settings(Strict):
    """All of params.yaml."""

    pipeline: Pipeline
    adaptation: Adaptation
    attribution: Attribution
    search: Search
    evaluation: Evaluation
    precision: Precisions = Precisions()
    retrain: Retrain = Retrain()
    studies: dict[str, StudyRun]  # dvc.yaml needs these three keys
    nsa: dict[str, NsaRun]
    sparse: dict[str, SparseRun]
    models: dict[str, ModelSpec]
    benchmarks: dict[str, BenchmarkSpec]

    @model_validator(mode="after")
    def _names(self) -> "Settings":
        for section in ("models", "benchmarks"):
            declared = getattr(self, section)
            for name in declared:
                if "." in name:
                    raise ValueError(
                        f"{section}.{name}: DVC would read what follows a dot as a field; write {in_file(name)} "
                        "(commands take either)"
                    )
                if not NAME.fullmatch(name):
                    raise ValueError(f"{section}.{name}: a name has letters, digits, - and _ only")
            named = {"pipeline": getattr(self.pipeline, section)}
            named |= {f"retrain.schedules.{k}": getattr(v, section) for k, v in self.retrain.schedules.items()}
            for place, names in named.items():
                for name in names:
                    if name not in declared:
                        raise ValueError(f"{place}.{section}: {name!r} is not declared; choose from {sorted(declared)}")
        for key, cell in self.pipeline.cells.items():
            for section, name in (("models", cell.model), ("benchmarks", cell.benchmark)):
                if name not in getattr(self.pipeline, section):
                    listed = sorted(getattr(self.pipeline, section))
                    raise ValueError(
                        f"pipeline.cells.{key}: {name!r} is not in pipeline.{section}; choose from {listed}"
                    )
        runs: list[tuple[str, str, StudyRun | NsaRun, list[str]]] = [
            *(("studies", key, study, [study.benchmark, *study.benchmarks]) for key, study in self.studies.items()),
            *(("nsa", key, nsa, [nsa.benchmark]) for key, nsa in self.nsa.items()),
        ]
        for place, key, run, benchmarks in runs:
            if key != run.name:
                raise ValueError(f"{place}.{key}: must be named {run.name!r}")
            for section, names in (("models", [run.model]), ("benchmarks", benchmarks)):
                for name in names:
                    if name not in getattr(self, section):
                        raise ValueError(f"{place}.{key}: {name!r} is not declared under {section}")
        free = {name for name, spec in self.benchmarks.items() if spec.free_answers}
        used = [(f"pipeline.cells.{key}", cell.benchmark) for key, cell in self.pipeline.cells.items()]
        used += [(f"{place}.{key}", run.benchmark) for place, key, run, _ in runs]
        used += [
            (f"studies.{key}.benchmarks", name)
            for key, study in self.studies.items()
            for name in (study.benchmarks if study.study == "cross_benchmark" else ())
        ]
        for place, name in used:
            if name in free:
                raise ValueError(
                    f"{place}: {name} has free answers, not options to choose from; `dsm study generation --on {name}` "
                    "evaluates models on it"
                )
        for key, study in self.studies.items():
            if study.study == "generation" and (with_options := sorted({*study.benchmarks} - free)):
                raise ValueError(f"studies.{key}.benchmarks: {with_options[0]} has no free answers (gold: any)")
        for key, sparse in self.sparse.items():
            if not NAME.fullmatch(key):
                raise ValueError(f"sparse.{key}: a name has letters, digits, - and _ only")
            if sparse.model not in self.models:
                raise ValueError(
                    f"sparse.{key}.model: {sparse.model!r} is not declared; choose from {sorted(self.models)}"
                )
        return self


def _line(error: dict[str, Any]) -> tuple[str, str]:
    """One pydantic error as (field, problem)."""
    # pydantic adds the tag of a discriminated union to the path; params.yaml has no such field.
    several = ("one", "several")
    kinds = ("wheel", "wheels", "hub", "path", "local")
    tags = {"source": kinds, "test": ("rows", "held_out"), "options": several, "labels": several}
    tags["split"] = ("count", "fraction")
    loc = [str(part) for part in error["loc"]]
    parts = [part for before, part in zip(["", *loc], loc, strict=False) if part not in tags.get(before, ())]
    problem = error["msg"].removeprefix("Value error, ")
    if error["type"] not in ("value_error", "missing") and not isinstance(error["input"], dict | list):
        value = error["input"]
        # Python refuses to print integers with thousands of digits.
        problem += ", not a huge number" if isinstance(value, int) and abs(value) >= 2**64 else f", not {value!r}"
    return ".".join(parts) or PARAMS, problem


def parse_settings(text: str) -> Settings:
    """Settings from the text of params.yaml.

    Raises:
        InputError: a field is wrong; the message names the first.
    """
    raw = read_yaml(text, field=PARAMS)
    if not isinstance(raw, dict):
        raise InputError(PARAMS, "must hold a mapping of sections")
    benchmarks = raw.get("benchmarks")
    if isinstance(benchmarks, dict):  # otherwise refused below
        raw = raw | {"benchmarks": {name: _expanded(name, entry) for name, entry in benchmarks.items()}}
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise InputError(*_line(dict(error.errors()[0]))) from None


def _expanded(name: Any, entry: Any) -> Any:
    """Expands an entry of `benchmarks` that names a benchmark of the library; other entries are returned unchanged."""
    if isinstance(entry, dict) and "spec" in entry:
        return library.expand(entry, field=f"benchmarks.{name}")
    return entry


def load_settings(root: Path) -> Settings:
    """Settings of the project in `root`.

    Raises:
        InputError: the file does not exist or a field is wrong.
    """
    path = root / PARAMS
    try:
        return parse_settings(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(PARAMS, f"not found in {root}; run from the project's directory") from None
    except UnicodeDecodeError:
        raise InputError(PARAMS, "not UTF-8 text") from None
