"""Where MLflow keeps what it tracks."""

import os
from pathlib import Path


def tracking_uri(root: Path) -> str:
    """The variable MLFLOW_TRACKING_URI, otherwise the SQLite file that `tasks.register` uses too."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
