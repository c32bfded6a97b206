"""search: accuracy and gold margin of every (layer, fraction) on the adaptation set."""

import pandas as pd
from safetensors.torch import load_file

from tasks.benchmarks.table import encode_rows
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.errors import InputError
from tasks.pipeline.files import read_jsonl, sha256_file, write_parquet
from tasks.pipeline.journal import Journal, journal_key
from tasks.pipeline.progress import progress
from tasks.pipeline.step import run_step
from tasks.pruning.grid import grid
from tasks.pruning.masks import count


def search(cell: Cell) -> None:
    """Writes the grid. Its labels are those of the adaptation set; no test row is seen."""
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    rows = encode_rows(pd.DataFrame(read_jsonl(cell.samples)), loaded.tokenizer, stack.context)
    fractions = cell.settings.search.fractions
    if not count(fractions[0], stack.d_ff):
        raise InputError("search.fractions", f"{fractions[0]} of {stack.d_ff} neurons is none; use larger fractions")
    key = journal_key([sha256_directory(cell.model_dir), *map(sha256_file, (cell.samples, cell.scores)), fractions])
    journal = Journal(cell.scratch / "search.jsonl", key)
    with progress("search", len(stack) * len(rows.encoded)) as advance:
        scores = load_file(cell.scores)["scores"].numpy()
        frame = grid(stack, rows.encoded, rows.gold, scores, fractions, journal=journal, advance=advance)
    write_parquet(cell.grid, frame)
    journal.remove()


if __name__ == "__main__":
    run_step(search, description=__doc__)
