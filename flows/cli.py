"""The `dsm` command. Nothing heavy is imported before a command needs it: `dsm --help` answers at once.

Exit codes: 0; 2 after one line on stderr when the input is bad; 1 after a short reason when something else failed; 130
after Ctrl-C. The project is the working directory, as for `dvc`.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows import experiments, operate
from flows.console import Benchmark, Data, Model, Runnable, print_table
from tasks.runtime.errors import InputError


class _Group(TyperGroup):
    """Turns exceptions into the exit codes above, for every command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted; `dsm run` goes on where it stopped", file=sys.stderr)
            raise typer.Exit(130) from None
        except Exception as error:
            if type(error).__module__.startswith("typer."):  # usage errors and exits, which typer handles
                raise
            code, line = _told(error)
            print(line, file=sys.stderr)
            raise typer.Exit(code) from error


def _told(error: Exception) -> tuple[int, str]:
    """Exit code and line of an exception."""
    if isinstance(error, InputError):
        return 2, f"error: {error}"
    if isinstance(error, OSError) and error.filename is not None:  # a full disk, a missing right
        return 2, f"error: {error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if type(error).__name__ == "SafetensorError":  # a damaged file; by name, since flows import no file formats
        return 2, f"error: a safetensors file cannot be read or written: {text}"
    if type(error).__module__.startswith("flows."):
        return 1, f"failed: {text}"
    place = traceback.extract_tb(error.__traceback__)[-1]  # nobody expected it
    return 1, f"failed: {type(error).__name__}: {text} ({place.filename}:{place.lineno})"


app = typer.Typer(
    cls=_Group,
    help="Adapt a language model to a multiple-choice benchmark by pruning neurons chosen from ten examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

benchmarks = typer.Typer(help="The library of benchmarks.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(benchmarks, name="benchmarks")
app.add_typer(experiments.app)
app.add_typer(operate.app)


@app.command()
def run(model: Model = None, benchmark: Runnable = None, data: Data = None) -> None:
    """Bring every step of a cell up to date, register the result and show it."""
    from flows.cells import declare
    from flows.environment import prepare, step_timeout
    from flows.removal import taken_back_without_result
    from tasks.benchmarks.rows import check_templates
    from tasks.pipeline.cell import open_cell

    step_timeout()
    prepare()
    if data is not None and benchmark is None:
        raise InputError("data", "is for a benchmark that is taken from the library; name it with --benchmark")
    # An orderly end on `kill` too: it takes back what was added, and stops the temporary server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with taken_back_without_result(Path.cwd()):
        if benchmark is not None and (line := declare(Path.cwd(), benchmark, model=model, data=data)):
            print(f"added to params.yaml: {line}", flush=True)
        cell = open_cell(model, benchmark)
        check_templates(cell.benchmark_spec, field=f"benchmarks.{cell.benchmark}")

        from flows.adapt import adapt, listed
        from flows.results import as_table
        from flows.server import start_server

        with listed(cell):
            start_server(f"{cell.model} on {cell.benchmark}")
            result = adapt(cell.model, cell.benchmark)
    print_table(as_table([result]))
    names = f"--model {cell.model} --benchmark {cell.benchmark}"
    for what, where in (
        ("report", cell.report.relative_to(cell.root)),
        ("pruned model", cell.pruned.relative_to(cell.root)),
        ("as a Hugging Face directory", f"dsm export {names} --out DIR"),
        ("tracking and registry", "dsm ui"),
        ("all results", "dsm show"),
    ):
        print(f"{what + ':':<29}{where}")


@app.command("rm")
def remove(
    cell: Annotated[str, typer.Argument(help="A name under pipeline.cells in params.yaml, such as MODEL-BENCHMARK.")],
) -> None:
    """Take a cell out of params.yaml: it is not kept up to date any more. Its results stay where they are."""
    from flows.removal import remove_cell

    for line in remove_cell(Path.cwd(), cell):
        print(f"taken out of params.yaml: {line}")
    print("left as they are: its files in data/, their copies in DVC's cache and remotes, its registered versions")


@app.command()
def plan(model: Model = None, benchmark: Benchmark = None) -> None:
    """Show what a run would do, and about how long it would take."""
    from rich.table import Table

    from flows.plan import make_plan
    from tasks.pipeline.cell import open_cell

    cell = open_cell(model, benchmark)
    made = make_plan(cell)
    table = Table(title=f"{cell.model} on {cell.benchmark}", caption=made.basis)
    for name in ("stage", "does"):
        table.add_column(name, overflow="fold")
    for name in ("forward passes", "minutes"):
        table.add_column(name, justify="right")
    for line in made.lines:
        table.add_row(
            line.stage,
            line.does,
            f"{line.passes:,}" if line.passes else "",
            f"{line.seconds / 60:.1f}" if line.seconds else "",
        )
    table.add_section()
    passes, seconds = (sum(getattr(line, name) for line in made.lines) for name in ("passes", "seconds"))
    table.add_row("total, estimated", "", f"{passes:,}", f"{seconds / 60:.1f}")
    print_table(table)


@app.command()
def show(markdown: Annotated[bool, typer.Option("--markdown", help="As a table for a page.")] = False) -> None:
    """Show the results of every cell there is."""
    from flows.results import all_results, as_markdown, as_table
    from tasks.pipeline.settings import load_settings

    root = Path.cwd()
    results = all_results(root, load_settings(root))
    if results and markdown:
        print(as_markdown(results))
    elif results:
        print_table(as_table(results))
    else:
        print("no cell has a result yet: `dsm run` makes one")


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The directory to make; must not exist.")],
    model: Model = None,
    benchmark: Benchmark = None,
) -> None:
    """Write the pruned model of a cell as a plain Hugging Face directory."""
    from tasks.pipeline.cell import open_cell

    cell = open_cell(model, benchmark)

    from tasks.tracking import export as exports

    exports.export(cell, out)
    print(out)


@app.command("apply")
def apply_recipe(
    recipe: Annotated[Path, typer.Argument(help="A pruned.json, or a sparse.json beside its masks.")],
    model: Annotated[Path, typer.Option(help="The Hugging Face directory of the base model that the recipe names.")],
    out: Annotated[Path, typer.Option(help="The directory to make; must not exist.")],
) -> None:
    """Apply a recipe to a copy of its base model; another model is refused by its hash."""
    from tasks.tracking import export as exports

    exports.apply(recipe, model, out)
    print(out)


@app.command()
def ui(port: Annotated[int, typer.Option(help="The port on 127.0.0.1.")] = 5000) -> None:
    """Start the MLflow UI on 127.0.0.1; it runs until Ctrl-C."""
    from flows.environment import child_environment
    from tasks.tracking.store import tracking_uri

    uri = tracking_uri(Path.cwd())
    if uri.startswith(("http://", "https://")):
        print(f"the tracking server shows its own pages: {uri}")
        return
    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    arguments = ["server", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", uri]
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", *arguments], child_environment())


@app.command()
def validate() -> None:
    """Check params.yaml field by field."""
    from flows.environment import prepare
    from tasks.benchmarks.rows import check_templates
    from tasks.pipeline.settings import load_settings
    from tasks.pipeline.study_inputs import check_inputs

    settings = load_settings(Path.cwd())
    if settings.retrain.schedules:
        prepare(places=False)

        from flows.deployments import check_schedules

        check_schedules(settings)
    for study in settings.studies.values():
        check_inputs(study, settings, Path.cwd())
    for name, benchmark in settings.benchmarks.items():
        check_templates(benchmark, field=f"benchmarks.{name}")
    for name, model in settings.models.items():
        print(f"model {name}: {_source(model.source)}{_listed(name, settings.pipeline.models)}")
    for name, benchmark in settings.benchmarks.items():
        print(
            f"benchmark {name}: {_options(benchmark.options)}, {_source(benchmark.train.source)}"
            f"{_listed(name, settings.pipeline.benchmarks)}"
        )


@app.command()
def verify() -> None:
    """Hash all results and models, and their copies in DVC's cache: do they have the bytes of dvc.lock?

    Ends with 1 unless all files are here and whole; also where there is nothing to verify.
    """
    from flows.integrity import look_at, outputs_of, summary
    from flows.stages import StepFailed, cache_directory

    root = Path.cwd()
    outputs = outputs_of(None, root)
    if not outputs:  # not 0: nothing was found to be whole
        raise StepFailed("verify", "there is nothing to verify: dvc.lock names no outputs; `dsm run` makes some")
    cache = cache_directory(root)
    found = []
    for output in outputs:
        found.append(look_at(output, root, cache))
        for line in found[-1].lines():
            print(line)
    if not all(one.whole for one in found):
        raise StepFailed("verify", summary(found))
    print(summary(found))


@benchmarks.command("ls")
def list_benchmarks(
    data: Data = None,
    family: Annotated[
        str | None,
        typer.Option(help="Only those of a family: sentiment, 'question answering', similarity or reasoning."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The library alone, as a table for a page.")] = False,
) -> None:
    """Show the benchmarks of the library and of params.yaml: rows, options, licence, and where the rows come from."""
    from itertools import groupby

    from rich.table import Table

    from flows.benchmark_list import COLUMNS, catalogue, page_table
    from tasks.pipeline.settings import PARAMS

    if markdown:
        print(page_table(family))
        return
    table = Table(
        caption="train and test: rows as published; majority: share of the commonest right option; "
        "from: what a line in params.yaml without `source` reads"
    )
    for name, justify in COLUMNS:
        table.add_column(name, justify=justify, overflow="fold")
    for section in catalogue(Path.cwd(), data, family):
        for title, rows in groupby(section, key=lambda row: row[1]):
            if not section[0][0].startswith(PARAMS):
                table.add_row(title)
            for name, _, *cells in rows:
                table.add_row(name, *cells)
            table.add_section()
    print_table(table)


def _options(options: Any) -> str:
    return "options by row" if isinstance(options, str) else f"{len(options)} options"


def _source(source: Any) -> str:
    if source.kind == "local":
        return ", ".join(source.paths[:2]) + (f" and {len(source.paths) - 2} more" if len(source.paths) > 2 else "")
    if source.kind == "wheel":
        return f"{source.file} of the wheel {source.package}=={source.version}"
    if source.kind == "wheels":
        return f"{source.file} in {len(source.parts)} wheels on PyPI"
    return f"{source.id}@{source.revision} on the hub" if source.kind == "hub" else str(source.path)


def _listed(name: str, names: list[str]) -> str:
    return "" if name in names else " (not in the pipeline yet)"
