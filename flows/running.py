"""The commands of `dsm` that begin: init, run, rm, hash."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.console import Data, Limit, Models, Runnables, Seed, Set
from flows.tables import print_table

if TYPE_CHECKING:
    from tasks.pipeline.cell import Cell

app = typer.Typer()


@app.command()
def run(
    model: Models = None,
    benchmark: Runnables = None,
    data: Data = None,
    limit: Limit = None,
    seed: Seed = None,
    change: Set = None,
) -> None:
    """Bring every step of one or several cells up to date, register the results and show them.

    Each model on each benchmark is a cell. Entries that params.yaml lacks are added to it, pinned; they are removed
    again if the run fails before it has a result.
    """
    from flows.declaring import asked_for, declare
    from flows.environment import prepare, step_timeout
    from flows.removal import taken_back_without_result
    from tasks.benchmarks.rows import check_templates
    from tasks.pipeline.cell import open_cell

    step_timeout()
    prepare()
    # An orderly end on `kill` too: it takes back what was added, and stops the temporary server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    root = Path.cwd()
    asked = asked_for(root, model or (), benchmark or (), data, limit, seed, change or ())
    with taken_back_without_result(root):
        declared = declare(root, asked)
        for line in declared.notes:
            print(line, flush=True)
        cells = {
            cell.name: cell
            for cell in (open_cell(m, b) for m in declared.models or [""] for b in declared.benchmarks or [""])
        }
        for cell in cells.values():
            check_templates(cell.benchmark_spec, field=f"benchmarks.{cell.benchmark}")

        from flows.adapt import adapt, listed
        from flows.results import as_table
        from flows.server import start_server

        results = []
        started = False
        for cell in cells.values():
            with listed(cell):
                if not started:
                    start_server(", ".join(f"{cell.model} on {cell.benchmark}" for cell in cells.values()))
                    started = True
                results.append(adapt(cell.model, cell.benchmark))
    print_table(as_table(results))
    for cell in cells.values():
        _tell_where(cell)
    print("tracking and registry:       dsm ui\nall results:                 dsm show")


def _tell_where(cell: "Cell") -> None:
    names = f"--model {cell.model} --benchmark {cell.benchmark}"
    for what, where in (
        ("report", cell.report.relative_to(cell.root)),
        ("pruned model", cell.pruned.relative_to(cell.root)),
        ("ask both models", f"dsm try {names}"),
        ("as a Hugging Face directory", f"dsm export {names} --out DIR"),
    ):
        print(f"{what + ':':<29}{where}")


@app.command("rm")
def remove(
    cell: Annotated[str, typer.Argument(help="A name under pipeline.cells in params.yaml, such as MODEL-BENCHMARK.")],
) -> None:
    """Remove a cell from params.yaml: it is no longer kept up to date. Its results are not deleted."""
    from flows.removal import remove_cell

    for line in remove_cell(Path.cwd(), cell):
        print(f"removed from params.yaml: {line}")
    print("not deleted: its files in data/, their copies in DVC's cache and remotes, its registered versions")


@app.command("hash")
def hash_path(
    path: Annotated[Path, typer.Argument(help="A file, a model directory, or the first shard of a split GGUF model.")],
) -> None:
    """Print the SHA-256 that pins a file or a model directory in params.yaml."""
    from tasks.pipeline.wanted import hash_of_model
    from tasks.runtime.files import existing_path, sha256_file

    target = existing_path(str(path), field="path", root=Path.cwd())
    is_model = target.is_dir() or target.suffix == ".gguf"
    print(hash_of_model(target, field="path") if is_model else sha256_file(target))


@app.command("init")
def init_project(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory, or one with your rows.")],
) -> None:
    """Create a project in a directory of your own, outside a checkout, or update its dvc.yaml after an upgrade."""
    from flows.starting import init

    for line in init(directory):
        print(line)
