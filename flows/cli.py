"""The `dsm` command. Nothing heavy is imported before a command needs it: `dsm --help` answers at once.

Exit codes: 0; 2 after one line on stderr when the input is bad; 1 after a short reason when something else failed; 130
after Ctrl-C. The project is the working directory, as for `dvc`.
"""

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows import experiments, handover, inspection, operate, running
from tasks.runtime.errors import InputError, one_line


class _Group(TyperGroup):
    """Turns exceptions into the exit codes above, for every command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted; `dsm run` continues where it stopped", file=sys.stderr)
            raise typer.Exit(130) from None
        except Exception as error:
            if type(error).__module__.startswith("typer."):  # usage errors and exits, which typer handles
                raise
            code, line = _exit_line(error)
            print(line, file=sys.stderr)
            raise typer.Exit(code) from error


def _exit_line(error: Exception) -> tuple[int, str]:
    """Exit code and line of an exception."""
    if isinstance(error, InputError):
        return 2, f"error: {error}"
    if isinstance(error, OSError) and error.filename is not None:  # a full disk, a missing right
        return 2, f"error: {InputError(str(error.filename), error.strerror or str(error))}"
    text = one_line(str(error))
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
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for part in (running, inspection, handover, experiments, operate):
    app.add_typer(part.app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dsm-pruning {version('dsm-pruning')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Adapt a language model to a multiple-choice benchmark by pruning neurons chosen from ten examples."""
