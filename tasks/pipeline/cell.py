"""A cell, one model on one benchmark, and the paths of its files."""

from dataclasses import dataclass
from pathlib import Path

from tasks.benchmarks import library
from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.models.model_spec import ModelSpec
from tasks.pipeline.settings import Settings, in_file, load_settings
from tasks.runtime.errors import InputError


@dataclass(frozen=True)
class Cell:
    """One model on one benchmark in the project at `root`. Paths are absolute if `root` is."""

    root: Path
    model: str
    benchmark: str
    settings: Settings

    @property
    def name(self) -> str:
        """The cell's name, also in its DVC stages: `score@<name>`."""
        return f"{self.model}-{self.benchmark}"

    @property
    def model_spec(self) -> ModelSpec:
        return self.settings.models[self.model]

    @property
    def benchmark_spec(self) -> BenchmarkSpec:
        return self.settings.benchmarks[self.benchmark]

    @property
    def model_dir(self) -> Path:
        return self.root / "data" / "models" / self.model

    @property
    def benchmark_dir(self) -> Path:
        return self.root / "data" / "benchmarks" / self.benchmark

    @property
    def directory(self) -> Path:
        return self.root / "data" / "cells" / self.model / self.benchmark

    @property
    def scratch(self) -> Path:
        """The directory of journals and timings. It is outside DVC, and safe to delete if no step is running."""
        return self.root / "data" / "scratch" / self.model / self.benchmark

    @property
    def columns(self) -> Path:
        """Kinds of the columns that the prompt uses; the file exists only if not all are texts."""
        return self.benchmark_dir / "columns.json"

    @property
    def train(self) -> Path:
        return self.benchmark_dir / "train.parquet"

    @property
    def test(self) -> Path:
        return self.benchmark_dir / "test.parquet"

    @property
    def samples(self) -> Path:
        return self.directory / "samples.jsonl"

    @property
    def unlabeled(self) -> Path:
        """Further train rows, without their labels."""
        return self.directory / "unlabeled.jsonl"

    @property
    def preflight(self) -> Path:
        """The unpruned model's answers to some train rows (`tasks.method.preflight`)."""
        return self.directory / "preflight.json"

    @property
    def scores(self) -> Path:
        return self.directory / "scores.safetensors"

    @property
    def grid(self) -> Path:
        return self.directory / "grid.parquet"

    @property
    def pruned(self) -> Path:
        return self.directory / "pruned.json"

    @property
    def predictions(self) -> Path:
        return self.directory / "predictions.parquet"

    @property
    def evaluation(self) -> Path:
        return self.directory / "evaluation.json"

    @property
    def metrics(self) -> Path:
        """The metrics of the cell for `dvc metrics show`."""
        return self.root / "metrics" / f"{self.name}.json"

    @property
    def transfer_grid(self) -> Path:
        return self.directory / "transfer.parquet"

    @property
    def transfer(self) -> Path:
        return self.directory / "transfer.json"

    @property
    def report(self) -> Path:
        return self.directory / "report.html"

    def study(self, name: str) -> Path:
        return self.root / "data" / "studies" / name / self.model / self.benchmark


def _declared(section: str, name: str, declared: dict[str, object]) -> None:
    if name in declared:
        return
    if section == "benchmarks":
        raise InputError(section, library.undeclared(name, declared))
    raise InputError(section, f"{name!r} is not declared in params.yaml; choose from {sorted(declared)}")


def open_cell(
    model: str | None = None,
    benchmark: str | None = None,
    root: Path | None = None,
    settings: Settings | None = None,
) -> Cell:
    """The cell of a model and a benchmark in the project in `root` (default: the working directory).

    Without names, it is the first of `pipeline.cells`; with one name, the first cell with that name. If no cell has it,
    the other name is that of the first cell, or the first declared name. A dot in a name is read as the `_` of
    params.yaml. `settings` are those of params.yaml by default.

    Raises:
        InputError: params.yaml is wrong, a name is not declared in it, or there are neither names nor cells.

    Example:
        >>> cell = open_cell("smollm2-135m-instruct", "rotten_tomatoes")
        >>> cell.pruned.name
        'pruned.json'
    """
    root = root or Path.cwd()
    settings = settings or load_settings(root)
    model, benchmark = (name and in_file(name) for name in (model, benchmark))
    if not model or not benchmark:
        pipeline = settings.pipeline
        cells = [
            *pipeline.chosen([model] if model else None, [benchmark] if benchmark else None),
            *pipeline.cells.values(),
        ]
        if not (model or benchmark or cells):
            raise InputError("pipeline.cells", "is empty; name a model and a benchmark")
        model = model or [*(cell.model for cell in cells), *pipeline.models, *settings.models][0]
        benchmark = benchmark or [*(cell.benchmark for cell in cells), *pipeline.benchmarks, *settings.benchmarks][0]
    _declared("models", model, dict(settings.models))
    _declared("benchmarks", benchmark, dict(settings.benchmarks))
    return Cell(root, model, benchmark, settings)
