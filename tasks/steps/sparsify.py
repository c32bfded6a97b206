"""sparsify: prune the weights of all layers by a method of `tasks.sparsity`, in sparse.json and masks.safetensors."""

from pathlib import Path

from tasks.benchmarks.table import read_split
from tasks.models.hashing import recorded_hash
from tasks.models.loading import Loaded, load
from tasks.pipeline.cell import Cell
from tasks.pipeline.runs import SparseRun
from tasks.pipeline.step import run_step
from tasks.runtime.errors import InputError
from tasks.runtime.files import existing_path, replacing
from tasks.sparsity.calibration import Calibration, encode_prompts, from_prompts, from_texts, read_texts
from tasks.sparsity.metrics import NOfM
from tasks.sparsity.sparse_recipe import write_recipe
from tasks.sparsity.weight_pruning import prune_weights

PROMPTS = 32  # train prompts read for each sequence


def sparsify(cell: Cell, key: str) -> None:
    """Writes data/sparse/<key>/: the recipe and the masks of one entry of `sparse` in params.yaml.

    Args:
        cell: its benchmark is not used.

    Raises:
        InputError: the entry or its calibration set does not exist.
    """
    if key not in cell.settings.sparse:
        raise InputError("sparse", f"{key!r} is not in params.yaml: `dsm sparsify` adds it")
    run = cell.settings.sparse[key]
    loaded = load(cell.model_dir, wide=True)
    calibration = None if run.method == "magnitude" else _calibration(cell, key, run, loaded)
    base = recorded_hash(cell.model_dir)
    target = NOfM(*run.n_of_m) if run.n_of_m else run.sparsity
    assert target is not None  # `SparseRun` has one of the two
    sequences = calibration.sequences if calibration else []
    report = prune_weights(loaded, sequences, run.method, target, permuted=run.permuted)
    with replacing(cell.root / "data" / "sparse" / key) as directory:
        write_recipe(directory, loaded, report, base_sha256=base, calibration=calibration)


def _calibration(cell: Cell, key: str, run: SparseRun, loaded: Loaded) -> Calibration:
    """The calibration set from a file of texts or from the train prompts in a benchmark's directory."""
    path = existing_path(run.calibration, field=f"sparse.{key}.calibration", root=cell.root)
    count, length, seed = run.sequences, run.length, run.seed
    if not path.is_dir():
        # The name is from params.yaml: the recipe must not depend on the project's directory.
        texts, name = read_texts(path), "/".join(Path(run.calibration).parts[-2:])
        return from_texts(loaded.tokenizer, texts, name=name, count=count, length=length, seed=seed)
    split = path / "train.parquet"
    if not split.is_file():
        raise InputError(f"sparse.{key}.calibration", f"{path} has no train.parquet; name a file, or data/benchmarks/B")
    # `from_prompts` drops longer prompts, and `Layers.walk` refuses a `length` above the model's context.
    prompts = encode_prompts(read_split(split, count * PROMPTS), loaded.tokenizer, 2**31)
    return from_prompts(prompts, name=path.name, count=count, length=length, seed=seed, fewer=True)


if __name__ == "__main__":
    run_step(sparsify, description=__doc__, argument="key")
