"""Code that the commands of `dsm` share: the options that name a cell, and the printing of JSON."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def _declared(section: str) -> Callable[[str], list[str]]:
    """Completes the names that params.yaml declares in a section."""

    def complete(incomplete: str) -> list[str]:
        import yaml

        try:
            names = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))[section]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):  # no project here, or a broken one
            return []
        return [str(name) for name in names or () if str(name).startswith(incomplete)]

    return complete


Model = Annotated[
    str | None,
    typer.Option(
        help="A name under models in params.yaml; default: that of the first cell with this benchmark.",
        autocompletion=_declared("models"),
    ),
]
Benchmark = Annotated[
    str | None,
    typer.Option(
        help="A name under benchmarks in params.yaml; default: that of the first cell with this model.",
        autocompletion=_declared("benchmarks"),
    ),
]

_MODEL = (
    "A hub id (org/name or org/name@revision), a directory, a GGUF file, or a name under models in params.yaml; "
    "default: that of the first cell with this benchmark."
)
_BENCHMARK = (
    "A benchmark of the library (`dsm benchmarks ls`), a JSONL, CSV or Parquet file, or a name under benchmarks in "
    "params.yaml; default: that of the first cell with this model."
)
RunModel = Annotated[str | None, typer.Option(help=_MODEL, autocompletion=_declared("models"))]
Runnable = Annotated[str | None, typer.Option(help=_BENCHMARK, autocompletion=_declared("benchmarks"))]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help=f"{_MODEL} May be given several times.", autocompletion=_declared("models")),
]
Runnables = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmark", help=f"{_BENCHMARK} May be given several times.", autocompletion=_declared("benchmarks")
    ),
]
Data = Annotated[str | None, typer.Option(help="A directory with the files of the library's benchmarks.")]
Limit = Annotated[
    int | None, typer.Option(help="Maximum number of test rows: the benchmark's limits.test in params.yaml.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of the draw of the ten examples: adaptation.seed in params.yaml.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a setting of params.yaml, such as attribution.max_nodes=8. May be given several times.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]


def print_json(value: Any) -> None:
    """Prints a value as JSON, for other programs."""
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
