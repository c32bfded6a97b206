"""MLflow's SQLite database: made whole or not at all, and its troubles told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.pipeline.errors import InputError
from tasks.pipeline.files import replacing

SQLITE = "sqlite:///"


def make_database(uri: str) -> None:
    """Makes the database of an address like sqlite:////path/mlflow.db, if there is none yet.

    MLflow creates its tables one by one; what is left of that by a kill or a full disk could never be used again.
    """
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if not uri.startswith(SQLITE) or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with replacing(path) as temporary:
        store: Any = SqlAlchemyStore  # untyped
        store(f"{SQLITE}{temporary}", (path.parent / "mlartifacts").resolve().as_uri()).engine.dispose()


@contextmanager
def troubles_told(uri: str) -> Iterator[None]:
    """Raises InputError where the database at `uri` is full, locked, damaged or gone."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except DBAPIError as error:
        raise InputError("MLFLOW_TRACKING_URI", f"{uri} cannot be used: {error.orig}") from None
    except MlflowException as error:  # the first line; statements and addresses of help follow
        raise InputError("MLFLOW_TRACKING_URI", f"{uri} cannot be used: {error.message.splitlines()[0]}") from None
