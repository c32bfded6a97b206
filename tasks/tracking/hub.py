"""Upload of exported models to the Hugging Face hub."""

import tempfile
from pathlib import Path
from typing import Any

from tasks.pipeline.cell import Cell
from tasks.runtime.errors import InputError
from tasks.tracking.export import export


def push(cell: Cell, repository: str, out: Path | None = None) -> str:
    """Exports the cell's pruned model and uploads it to a repository on the hub, as one commit.

    A repository that does not exist is created as a private one; it can be made public on its page. The token is that
    of `hf auth login` or HF_TOKEN.

    Args:
        repository: organisation/name, or user/name.
        out: the directory to export to; None means a temporary directory.

    Returns:
        The address of the commit.

    Raises:
        InputError: `repository` is not a valid name, there is no token, the hub cannot be reached or refuses, or as for
            `export`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if repository.count("/") != 1:
        raise InputError("push", f"must be organisation/name or user/name, not {repository!r}")
    api = HfApi()
    _asked(repository, validate_repo_id, repository)
    if out is None:
        cell.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cell.scratch) as work:
            return _upload(api, cell, repository, Path(work) / "exported")
    return _upload(api, cell, repository, out)


def _upload(api: Any, cell: Cell, repository: str, out: Path) -> str:
    export(cell, out)
    _asked(repository, api.create_repo, repository, private=True, exist_ok=True)
    message = f"{cell.model} pruned for {cell.benchmark}"
    return str(_asked(repository, api.upload_folder, repo_id=repository, folder_path=out, commit_message=message))


def _asked(repository: str, call: Any, *arguments: Any, **named: Any) -> Any:
    """Calls a function of huggingface_hub; an exception becomes an InputError of one line."""
    from httpx2 import HTTPError

    try:
        return call(*arguments, **named)
    except (HTTPError, OSError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError("push", f"{repository}: {lines[0] if lines else type(error).__name__}") from None
