"""MLflow's SQLite database: made whole or not at all, and its troubles told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from tasks.runtime.errors import InputError
from tasks.runtime.files import replacing

SQLITE = "sqlite:///"


def check_path(root: Path) -> None:
    """Raises InputError where MLflow cannot take files from a project in this directory."""
    if unquote(str(root)) != str(root):  # MLflow decodes paths of files as if they were addresses
        raise InputError(
            "project",
            f"the path {str(root)!r} has a '%' before two hexadecimal digits, and MLflow fails there; move it",
        )


def sqlite_uri(path: Path) -> str:
    """The address of a database file.

    Raises:
        InputError: no address can name it.
    """
    if "?" in str(path):  # SQLAlchemy takes no escape for it
        raise InputError(
            "project",
            f"the path {str(path)!r} has a '?', and the address of an SQLite database ends there; "
            "move the project, or set MLFLOW_TRACKING_URI to another database or server",
        )
    return f"{SQLITE}{path}"


def make_database(uri: str) -> None:
    """Makes the database of an address like sqlite:////path/mlflow.db, if there is none yet.

    MLflow creates its tables one by one; what is left of that by a kill or a full disk could never be used again.
    """
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if not uri.startswith(SQLITE) or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with replacing(path) as temporary:
        artifacts = (path.parent / "mlartifacts").resolve().as_uri()
        SqlAlchemyStore(f"{SQLITE}{temporary}", artifacts).engine.dispose()  # type: ignore[no-untyped-call]


@contextmanager
def troubles_told(uri: str, what: str) -> Iterator[None]:
    """Raises InputError, saying `what`, where the store at `uri` is full, locked, damaged, gone or does not answer."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except (DBAPIError, MlflowException) as error:  # the first line; statements and addresses of help follow
        why = str(error.orig if isinstance(error, DBAPIError) else error.message).splitlines()
        raise InputError("MLFLOW_TRACKING_URI", f"{uri} {what}: {why[0] if why else type(error).__name__}") from error
