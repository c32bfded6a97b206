"""The Prefect flow of a weight-pruned model: its base and the calibration prompts, then the DVC stage `sparsify`."""

import re
from pathlib import Path
from typing import Any

from prefect import flow

from flows.adapt import run_step
from flows.cells import file_name, list_entry, list_names
from flows.run_states import cancelled_by_ctrl_c, with_day
from tasks.pipeline.cell import open_cell
from tasks.pipeline.names import WEIGHT_METHODS
from tasks.pipeline.settings import BENCHMARKS, load_settings
from tasks.runtime.errors import InputError
from tasks.runtime.fields import NAME


def list_sparse(
    root: Path, method: str, target: str, model: str | None, calibration: str | None, *, permuted: bool = False
) -> tuple[str, str | None]:
    """Adds a weight-pruned model to params.yaml, if it is not there.

    Args:
        target: "0.5" or "2:4".
        calibration: a declared benchmark, or a file; None: the first benchmark of the pipeline.
        permuted: with the channel permutation of RIA for N:M.

    Returns:
        Its key, and what was added.

    Raises:
        InputError: a name is not known, or the line would be wrong.
    """
    if method not in WEIGHT_METHODS:
        raise InputError("method", f"must be one of {', '.join(WEIGHT_METHODS)}, not {method!r}")
    cell = open_cell(model, root=root)
    name = calibration or cell.benchmark
    declared = name in cell.settings.benchmarks
    if not declared and not (root / name).is_file():
        raise InputError("calibration", f"{name!r} is neither a file nor one of {sorted(cell.settings.benchmarks)}")
    entry: dict[str, Any] = {"method": method, "model": cell.model, **_target(target)}
    if permuted:
        entry["permuted"] = True
    entry["calibration"] = BENCHMARKS + name if declared else name
    names = [name] if declared else _names(name)
    kind_of = [method, target.replace(":", "of").replace(".", "_"), *(["permuted"] if permuted else []), cell.model]
    start = "-".join(kind_of)
    line = None
    for key in (key for kind in names if NAME.fullmatch(key := f"{start}-{kind}")):
        there = cell.settings.sparse.get(key)
        if there is None:
            line = list_entry(root, "sparse", key, entry)
            break
        if there.calibration == entry["calibration"]:  # the key says the rest
            break
    else:
        raise InputError(
            "calibration", f"{name!r} does not give a unique name; write the entry into `sparse` in params.yaml"
        )
    list_names(root, models=[cell.model], benchmarks=[name] if declared else [])  # or they have no stage
    return key, line


def _names(file: str) -> list[str]:
    """Names for a file, the shortest first: the last two parts of its path, more of them, and these with its suffix."""
    parts = range(2, max(3, len(Path(file).parts) + 1))
    return [file_name(file, number, suffix=suffix) for suffix in (False, True) for number in parts]


def _target(text: str) -> dict[str, Any]:
    if match := re.fullmatch(r"(\d{1,4}):(\d{1,4})", text):
        return {"n_of_m": [int(match[1]), int(match[2])]}
    try:
        return {"sparsity": float(text)}
    except ValueError:
        raise InputError("target", f"{text!r} is neither a fraction such as 0.5 nor N:M such as 2:4") from None


@flow(
    name="sparsify",
    flow_run_name=with_day("{key}"),
    on_crashed=[cancelled_by_ctrl_c],
    validate_parameters=False,
)
def sparsify(key: str) -> str:
    """Brings a weight-pruned model up to date.

    Returns:
        Its directory, relative to the project.

    Raises:
        InputError, StepFailed, Busy: as `flows.adapt.adapt`.
    """
    run = load_settings(Path.cwd()).sparse[key]
    stage = f"sparsify@{key}"
    run_step(f"model@{run.model}", readers=[stage])
    if run.calibration.startswith(BENCHMARKS):
        run_step(f"data@{run.calibration.removeprefix(BENCHMARKS)}")
    run_step(stage)
    return f"data/sparse/{key}"
