"""model: fetch a model and store it as a plain Hugging Face directory."""

import tempfile
from pathlib import Path

from tasks.models.conversion import write_model
from tasks.models.hashing import record_hash
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.step import run_step
from tasks.runtime.files import replacing


def store(cell: Cell) -> None:
    """Writes data/models/<model>/, after a check that the method can prune the model."""
    field = f"models.{cell.model}.source"
    with tempfile.TemporaryDirectory() as work, replacing(cell.model_dir) as target:
        write_model(cell.model_spec.source, target, field=field, root=cell.root, work=Path(work))
        stack = DecoderStack(load(target).model)
        record_hash(target)
    print(f"{cell.model}: {len(stack)} layers with {stack.d_ff} neurons each, in {cell.model_dir}")


if __name__ == "__main__":
    run_step(store, description=__doc__)
