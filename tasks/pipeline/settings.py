"""params.yaml, validated field by field.

Only what can change a result stands in params.yaml. Device, threads and tracking address come from the environment.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from zoneinfo import available_timezones

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tasks.pipeline import library
from tasks.pipeline.declared import NAME, BenchmarkSpec, Count, Fraction, ModelSpec, Seed, Sha256, Strict
from tasks.pipeline.errors import InputError
from tasks.pipeline.names import STUDIES, SYSTEMS, WEIGHT_METHODS
from tasks.pipeline.yamltext import read_yaml

PARAMS = "params.yaml"
BENCHMARKS = "data/benchmarks/"  # a calibration set that begins with it is the train prompts of a benchmark


class Adaptation(Strict):
    """The adaptation set: the few train rows that the method may look at."""

    size: Count = 10
    seed: Seed = 0
    selection: Literal["random", "correct", "wrong"] = "random"


class Attribution(Strict):
    """What a neuron's score is, and how it is computed; the formulas stand in `tasks.method`."""

    method: Literal["integrated_gradients", "gradient_x_activation", "activation", "relu_gradient"] = (
        "integrated_gradients"
    )
    path: Literal["layer", "all_layers", "single"] = "layer"
    projection: Literal["gate_proj", "up_proj", "down_proj"] = "gate_proj"
    target: Literal["max_logit", "max_logit_remaximised", "max_option_logit", "option_margin"] = "max_logit"
    ranking: Literal["signed", "absolute"] = "signed"
    quadrature: Literal["adaptive", "riemann_right"] = "adaptive"
    steps: Count = 20
    tolerance: float = Field(default=0.01, gt=0)
    stability: float = Field(default=0.99, ge=0, le=1)
    max_nodes: int = Field(default=32, ge=4, lt=2**31)

    @model_validator(mode="after")
    def _fits_together(self) -> "Attribution":
        if self.path == "single" and self.method != "integrated_gradients":
            raise ValueError(f"path: single is an exact integral, which {self.method} has none of; use layer")
        if self.path != "layer" and self.method in ("gradient_x_activation", "activation"):
            raise ValueError(f"path: {self.method} looks at the full model only and has no path; leave it at layer")
        if self.target != "max_logit" and self.method == "activation":
            raise ValueError("target: activation looks at no output; leave it at max_logit")
        return self

    def effective(self) -> dict[str, Any]:
        """The settings that the scores depend on; those of another method or rule are left out."""
        found = self.model_dump()
        if self.method == "activation":
            del found["target"]
        if self.method in ("gradient_x_activation", "activation"):
            del found["path"]
        if self.method != "integrated_gradients" or self.path == "single":
            del found["quadrature"]  # relu_gradient has a mean over `steps`, the others no integral
        adaptive = found.get("quadrature") == "adaptive"
        steps = found.get("quadrature") == "riemann_right" or self.method == "relu_gradient"
        unused = {"steps": not steps} | dict.fromkeys(("tolerance", "stability", "max_nodes"), not adaptive)
        return {name: value for name, value in found.items() if not unused.get(name)}


class Search(Strict):
    """The grid: layers x these fractions of their neurons, and which of its pairs are looked at."""

    strategy: Literal["exhaustive", "coarse_to_fine", "layer_subset", "dropping"] = "exhaustive"
    fractions: list[Fraction] = Field(default=[0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40], min_length=1)

    @field_validator("fractions")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError("must be ascending, without repeats")
        return value


class Precisions(Strict):
    """How the products of pruned runs are computed, by step; see `tasks.models.products`."""

    search: Literal["float32", "bfloat16"] = "float32"
    evaluate: Literal["float32", "bfloat16"] = "float32"
    transfer: Literal["float32", "bfloat16"] = "float32"


class Evaluation(Strict):
    """The random control is drawn once for each of these seeds."""

    control_seeds: list[Seed] = Field(min_length=1)

    @field_validator("control_seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("holds the same seed twice")
        return value


class Schedule(Strict):
    """When which cells of the pipeline are retrained: those with one of the names given; all where none are."""

    cron: str
    timezone: str = "UTC"
    models: list[str] = Field(default=[])
    benchmarks: list[str] = Field(default=[])

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"must be a name of the time zone database, such as Europe/Berlin, not {value!r}")
        return value


class Promotion(Strict):
    """When a challenger becomes champion; `tasks.promote.decide` applies it, all on the same test rows.

    Attributes:
        alpha: the level of the exact McNemar tests, all judgements on the same test rows together.
        margin: by how much accuracy a challenger that is better than the base may stay below the champion.
    """

    alpha: float = Field(default=0.05, gt=0, le=1)
    margin: float = Field(default=0.0, ge=0, lt=1)


class Retrain(Strict):
    """Retraining: no result depends on it, so it makes nothing stale. `pool` is the work pool of the deployments."""

    pool: str = "dsm"
    schedules: dict[str, Schedule] = Field(default={})
    promotion: Promotion = Promotion()

    @field_validator("schedules")
    @classmethod
    def _are_names(cls, value: dict[str, Schedule]) -> dict[str, Schedule]:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r}: a name has letters, digits, - and _ only")
        return value


RESERVED = ("own", "none")  # calibration sets of the study: the cell's own train prompts, and that of magnitude


class StudyRun(Strict):
    """One study of one cell; what a study does not look at keeps its default.

    Attributes:
        test: test rows; None: `limits.test` of the benchmark.
        systems: compare: beside the base and the pruned model.
        protocol: compare: the rows on which systems choose their own settings; `published` is the test rows, as the
            code that was published with SADI does.
        sizes: seeds: rows of the adaptation set.
        seeds: seeds: draws of each size; calibration: draws of the adaptation set that DSM pruning is shown with.
        benchmarks: multilingual and domains: the ones beside the cell's own; calibration: those whose train prompts
            are calibration sets, too. All declared.
        texts: calibration: further calibration sets, name -> file (JSONL with a `text` each, or plain text).
        methods: calibration.
        sparsities: calibration.
        sequences: calibration and bridge: of 512 tokens, in each set.
        inputs: hashes of `benchmarks` and `texts`, by name (`tasks.pipeline.inputs`); `dsm study` writes them.
    """

    study: Literal[STUDIES]  # type: ignore[valid-type]
    model: str
    benchmark: str
    test: Count | None = None
    systems: list[Literal[SYSTEMS]] = Field(default=list(SYSTEMS), min_length=1)  # type: ignore[valid-type]
    protocol: Literal["adaptation", "published"] = "adaptation"
    sizes: list[Count] = Field(default=[10, 50, 100], min_length=1)
    seeds: Count = 5
    benchmarks: list[str] = Field(default=[])
    texts: dict[str, str] = Field(default={})
    methods: list[Literal[WEIGHT_METHODS]] = Field(default=list(WEIGHT_METHODS), min_length=1)  # type: ignore[valid-type]
    sparsities: list[Fraction] = Field(default=[0.3, 0.5], min_length=1)
    sequences: Count = 8
    inputs: dict[str, Sha256] = Field(default={})

    @model_validator(mode="after")
    def _fits_together(self) -> "StudyRun":
        users = {
            "compare": ("systems", "protocol"),
            "seeds": ("sizes", "seeds"),
            "multilingual": ("benchmarks", "inputs"),
            "domains": ("benchmarks", "inputs"),
            "calibration": ("benchmarks", "texts", "methods", "sparsities", "sequences", "seeds", "inputs"),
            "bridge": ("sequences",),
        }
        for field in sorted(self.model_fields_set - {"study", "model", "benchmark", "test"}):
            if field not in users.get(self.study, ()):
                raise ValueError(f"{field}: the study {self.study} does not look at it")
        for field in ("benchmarks", "systems", "sizes", "methods", "sparsities"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise ValueError(f"{field}: holds the same value twice")
        if self.benchmark in self.benchmarks:
            raise ValueError(f"benchmarks: {self.benchmark} is the cell's own, which the study looks at anyway")
        for name in self.texts:
            if not NAME.fullmatch(name) or name in (*RESERVED, *self.benchmarks):
                raise ValueError(
                    f"texts.{name}: must be a name of letters, digits, - and _ that no other calibration set has; "
                    f"{', '.join(RESERVED)} are taken"
                )
        if self.study in ("multilingual", "domains") and not self.benchmarks:
            raise ValueError(f"benchmarks: the study {self.study} needs some beside {self.benchmark}")
        return self

    @property
    def name(self) -> str:
        return f"{self.study}-{self.model}-{self.benchmark}"


class NsaRun(Strict):
    """Neuron Semantic Attribution of one cell.

    Attributes:
        rows: test rows, the first; their labels are not looked at.
        words: influential words of each row.
        by: who finds them: `gradients` (of the model's own answer) or `generation` (the model is asked for them).
        method: of the weight pruning that stands beside the cell's own.
        sparsity: of it.
    """

    model: str
    benchmark: str
    rows: Count = 100
    words: Count = 5
    by: Literal["gradients", "generation"] = "gradients"
    method: Literal[WEIGHT_METHODS] = "wanda"  # type: ignore[valid-type]
    sparsity: Fraction = 0.5

    @property
    def name(self) -> str:
        return f"{self.model}-{self.benchmark}"


class SparseRun(Strict):
    """One weight-pruned model; `sparsity` or `n_of_m` is given.

    Attributes:
        sparsity: the part of the weights of each matrix (wanda: of each row) that is removed.
        n_of_m: [2, 4]: of every 4 consecutive weights of a row, 2 are kept.
        calibration: a file of texts (JSONL with a `text` each, or plain text), or data/benchmarks/B, whose train
            prompts are taken; magnitude does not look at it.
        sequences: of calibration, at most.
        length: tokens of each.
        seed: of their draw.
    """

    method: Literal[WEIGHT_METHODS]  # type: ignore[valid-type]
    model: str
    sparsity: Fraction | None = None
    n_of_m: tuple[Count, Count] | None = None
    calibration: str
    sequences: Count = 8
    length: Count = 512
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_target(self) -> "SparseRun":
        if (self.sparsity is None) == (self.n_of_m is None):
            raise ValueError("one of sparsity and n_of_m is needed")
        if self.n_of_m and self.n_of_m[0] >= self.n_of_m[1]:
            raise ValueError("n_of_m: of m weights, n from 1 to m - 1 are kept")
        return self


class ListedCell(Strict):
    """One model on one benchmark, both in the lists of the pipeline."""

    model: str
    benchmark: str

    @property
    def name(self) -> str:
        return f"{self.model}-{self.benchmark}"


class Pipeline(Strict):
    """What `dvc repro` keeps up to date: models and benchmarks are fetched, cells adapted. A cell's key is its name."""

    models: list[str]
    benchmarks: list[str]
    cells: dict[str, ListedCell] = Field(default=None, validate_default=True)

    @field_validator("models", "benchmarks")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if twice := [name for name in value if value.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is there twice")
        return value

    @field_validator("cells", mode="before")
    @classmethod
    def _is_there(cls, value: Any, info: ValidationInfo) -> Any:
        """In a file of the time before the list of cells, every model x every benchmark is one."""
        if value is not None:
            return value
        models, benchmarks = info.data.get("models", ()), info.data.get("benchmarks", ())
        cells = [ListedCell(model=model, benchmark=benchmark) for model in models for benchmark in benchmarks]
        found = {cell.name: cell.model_dump() for cell in cells}
        if len(found) < len(cells):
            raise ValueError("two cells would have the same name; rename a model or a benchmark")
        return found

    @field_validator("cells")
    @classmethod
    def _are_named_after_both(cls, value: dict[str, ListedCell]) -> dict[str, ListedCell]:
        for key, cell in value.items():
            if key != cell.name:
                raise ValueError(f"{key}: must be named {cell.name!r}")
        return value

    def chosen(self, models: Sequence[str] | None, benchmarks: Sequence[str] | None) -> list[ListedCell]:
        """The cells with one of these models and one of these benchmarks; with any where none are named."""
        return [
            cell
            for cell in self.cells.values()
            if (not models or cell.model in models) and (not benchmarks or cell.benchmark in benchmarks)
        ]


def in_file(name: str) -> str:
    """How a name of a model or benchmark is written in params.yaml: with _ for every dot."""
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
    studies: dict[str, StudyRun]  # dvc.yaml asks for these three, too
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
                        raise ValueError(f"{place}.{section}: {name!r} is not declared; there are {sorted(declared)}")
        for key, cell in self.pipeline.cells.items():
            for section, name in (("models", cell.model), ("benchmarks", cell.benchmark)):
                if name not in getattr(self.pipeline, section):
                    listed = sorted(getattr(self.pipeline, section))
                    raise ValueError(f"pipeline.cells.{key}: {name!r} is not in pipeline.{section}; there are {listed}")
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
        for key, sparse in self.sparse.items():
            if not NAME.fullmatch(key):
                raise ValueError(f"sparse.{key}: a name has letters, digits, - and _ only")
            if sparse.model not in self.models:
                raise ValueError(
                    f"sparse.{key}.model: {sparse.model!r} is not declared; there are {sorted(self.models)}"
                )
        return self


def _line(error: dict[str, Any]) -> tuple[str, str]:
    """One pydantic error as (field, problem)."""
    # pydantic puts the tag of a discriminated union into the path; a reader of params.yaml has no such field.
    several = ("one", "several")
    kinds = ("wheel", "wheels", "hub", "path", "local")
    tags = {"source": kinds, "test": ("Rows", "HeldOut"), "options": several, "labels": several}
    tags["split"] = ("count", "fraction")
    loc = [str(part) for part in error["loc"]]
    parts = [part for before, part in zip(["", *loc], loc, strict=False) if part not in tags.get(before, ())]
    problem = error["msg"].removeprefix("Value error, ")
    if error["type"] not in ("value_error", "missing") and not isinstance(error["input"], dict | list):
        value = error["input"]
        # Python does not print an integer of more than some thousand digits.
        problem += ", not a huge number" if isinstance(value, int) and abs(value) >= 2**64 else f", not {value!r}"
    return ".".join(parts) or PARAMS, problem


def parse_settings(text: str) -> Settings:
    """Settings from the text of params.yaml.

    Raises:
        InputError: naming the first field that is wrong.
    """
    raw = read_yaml(text, field=PARAMS)
    if not isinstance(raw, dict):
        raise InputError(PARAMS, "must hold a mapping of sections")
    benchmarks = raw.get("benchmarks")
    if isinstance(benchmarks, dict):  # what is none is told below
        raw = raw | {"benchmarks": {name: _written_out(name, entry) for name, entry in benchmarks.items()}}
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise InputError(*_line(dict(error.errors()[0]))) from None


def _written_out(name: Any, entry: Any) -> Any:
    """An entry of `benchmarks` that names one of the library, in full."""
    if isinstance(entry, dict) and "spec" in entry:
        return library.expand(entry, field=f"benchmarks.{name}")
    return entry


def load_settings(root: Path) -> Settings:
    """Settings of the project in `root`.

    Raises:
        InputError: the file is not there or a field is wrong.
    """
    path = root / PARAMS
    try:
        return parse_settings(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(PARAMS, f"not found in {root}; run from the project's directory") from None
    except UnicodeDecodeError:
        raise InputError(PARAMS, "not UTF-8 text") from None
