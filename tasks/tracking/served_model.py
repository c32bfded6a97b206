"""The MLflow model of a cell: the exported weights, the code that serves them, and its signature."""

import importlib.metadata
import re
import tempfile
from pathlib import Path
from typing import Any

from tasks.benchmarks.columns import ABSENT
from tasks.pipeline.cell import Cell
from tasks.runtime.files import read_json, read_jsonl

# The requirements of the served model (serving.py and what it imports), pinned to the installed versions.
REQUIREMENTS = (
    "mlflow", "torch", "transformers", "safetensors", "tokenizers", "numpy", "pandas", "scipy", "pydantic", "jinja2",
    "pyyaml", "psutil",
)  # fmt: skip


def log_model(cell: Cell) -> str:
    """Logs the exported model and the code that serves it to the active run. Returns the model's id."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    from tasks.benchmarks.templates import fixed_options, names_used
    from tasks.tracking.export import export

    package = Path(__file__).parents[1]  # tasks
    spec = cell.benchmark_spec
    fixed = fixed_options(spec)
    names = [option.strip() for option in fixed or []]
    names = names if len(set(names)) == len(names) else list(fixed or [])
    sample = read_jsonl(cell.samples)[0]
    inputs: list[Any]
    outputs: list[Any] = [ColSpec("string", "option")]
    kinds: dict[str, list[str]] = {}
    if fixed:
        fields = sorted(names_used(spec.prompt))
        kinds = {name: ["text"] for name in fields}
        example = _example(spec.prompt, fields, sample["prompt"])
        if cell.columns.exists():
            columns = read_json(cell.columns)
            kinds, example = columns["kinds"], pd.DataFrame([columns["example"]])
        inputs = [_column(name, of) for name, of in kinds.items()]
        outputs += [ColSpec("double", f"p({name})") for name in names]
    else:
        inputs = [ColSpec("string", "prompt"), ColSpec(Array(DataType.string), "options")]
        outputs += [ColSpec(Array(DataType.double), "p")]
        example = pd.DataFrame({"prompt": [sample["prompt"]], "options": [sample["options"]]})
    cell.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cell.scratch) as work:
        checkpoint = Path(work) / "checkpoint"
        export(cell, checkpoint)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "tracking" / "serving.py"),
            artifacts={"checkpoint": str(checkpoint)},
            code_paths=[str(package)],
            model_config={
                "prompt": spec.prompt,
                "options": fixed,
                "names": names,
                "chat": spec.chat,
                "kinds": kinds,
            },
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            input_example=example,
            pip_requirements=[f"{name}=={_installed(name)}" for name in REQUIREMENTS],
        )
    return str(info.model_id)


def _column(name: str, kinds: list[str]) -> Any:
    """The signature's column for values of these kinds.

    MLflow would convert "false" to true and 3.7 to an integer before the model gets them. So columns of such kinds
    accept any value, and the model checks it.
    """
    from mlflow.types import ColSpec, DataType
    from mlflow.types.schema import AnyType, Array

    types: dict[str, Any] = {
        "text": DataType.string,
        "number": DataType.double,
        "list of texts": Array(DataType.string),
        "list of integers": Array(DataType.long),
        "list of numbers": Array(DataType.double),
        "list of booleans": Array(DataType.boolean),
    }
    only = types.get(kinds[0]) if len(kinds) == 1 else None
    return ColSpec(only or AnyType(), name, required=ABSENT not in kinds)  # type: ignore[no-untyped-call]


def _installed(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[
        0
    ]  # package indexes have no local versions such as 2.13.0+cpu


def _example(template: str, fields: list[str], prompt: str) -> Any:
    """A frame with one row of input: the fields found in a prompt, if the template has plain fields only."""
    import pandas as pd

    parts = re.split(r"\{\{\s*(\w+)\s*\}\}", template)
    pattern, seen = "", set()
    for i, part in enumerate(parts):
        if i % 2 == 0:
            pattern += re.escape(part)
        else:
            pattern += f"(?P={part})" if part in seen else f"(?P<{part}>.*?)"
            seen.add(part)
    match = re.fullmatch(pattern, prompt, re.DOTALL)
    values = match.groupdict() if match else {}
    return pd.DataFrame([{field: values.get(field, f"<{field}>") for field in fields}])
