"""MLflow's SQLite database: it is created whole or not at all, and its errors become one line."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote

from tasks.runtime.errors import InputError
from tasks.runtime.files import replacing

SQLITE = "sqlite:///"


def check_path(root: Path) -> None:
    """Raises InputError where MLflow cannot take files from a project in this directory."""
    if unquote(str(root)) != str(root):  # MLflow decodes paths of files as if they were URLs
        raise InputError(
            "project",
            f"the path {str(root)!r} has a '%' before two hexadecimal digits, which MLflow does not support; move it",
        )


def sqlite_uri(path: Path) -> str:
    """The URI of a database file.

    Raises:
        InputError: the path has a character that no such URI can have.
    """
    if "?" in str(path):  # SQLAlchemy takes no escape for it
        raise InputError(
            "project",
            f"the path {str(path)!r} has a '?', which the address of an SQLite database cannot contain; "
            "move the project, or set MLFLOW_TRACKING_URI to another database or server",
        )
    return f"{SQLITE}{path}"


def make_database(uri: str) -> None:
    """Creates the database of a URI like sqlite:////path/mlflow.db, if there is none yet.

    MLflow creates its tables one by one, and could never use a database again in which a kill or a full disk left only
    some of them. So they are created in a temporary file.
    """
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if not uri.startswith(SQLITE) or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with replacing(path) as temporary:
        artifacts = (path.parent / "mlartifacts").resolve().as_uri()
        SqlAlchemyStore(f"{SQLITE}{temporary}", artifacts).engine.dispose()  # type: ignore[no-untyped-call]


def experiment_in(uri: str, name: str) -> str | None:
    """The id of an experiment in an SQLite database; None if it is not there, or in a store of another kind."""
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if not uri.startswith(SQLITE) or not path.exists():
        return None
    try:
        with closing(sqlite3.connect(path)) as database:
            row = database.execute("SELECT experiment_id FROM experiments WHERE name = ?", (name,)).fetchone()
    except sqlite3.Error:  # damaged, or of another program: the server will say so
        return None
    return str(row[0]) if row else None


@contextmanager
def reporting_store_errors(uri: str, what: str) -> Iterator[None]:
    """Raises InputError with `what` if the store at `uri` is full, locked, damaged, gone or does not answer."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except (DBAPIError, MlflowException) as error:  # the first line; statements and addresses of help follow
        why = str(error.orig if isinstance(error, DBAPIError) else error.message).splitlines()
        raise InputError("MLFLOW_TRACKING_URI", f"{uri} {what}: {why[0] if why else type(error).__name__}") from error
