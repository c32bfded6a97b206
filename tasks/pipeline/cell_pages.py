"""Pages that are made from a cell's files on request, and the check that they are current.

The JSON file of a page holds the hashes of the files that it was made from and of the files written with it. It is
written last, so a page is current only if all its files are complete.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.pipeline.cell import Cell
from tasks.runtime.files import read_json, replacing, sha256_file, write_json

# The JSON file -> the files written with it.
PAGES: Mapping[str, tuple[str, ...]] = {
    "explanation.json": ("explanation.html",),
    "nsa.json": ("nsa.html", "nsa.safetensors"),
}
OF, WITH = "made_of", "written_with"


def made_of(*paths: Path) -> dict[str, str]:
    """Names and SHA-256 of the files that a page is made from. Call it before reading them, since they may change."""
    return {path.name: sha256_file(path) for path in paths}


def write_page(
    cell: Cell, name: str, content: dict[str, Any], of: Mapping[str, str], files: Mapping[str, bytes]
) -> None:
    """Writes the files and then the JSON file `name`.

    Args:
        content: the content of the JSON file.
        of: the result of `made_of`.
        files: bytes of the other files by name.
    """
    for file, data in files.items():
        with replacing(cell.directory / file) as temporary:
            temporary.write_bytes(data)
    written = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    write_json(cell.directory / name, content | {OF: dict(of), WITH: written})


def stale_pages(cell: Cell) -> list[Path]:
    """The files of pages that were made from other files than the cell's current ones, or that are incomplete."""
    return [
        path
        for name, others in PAGES.items()
        if not _is_current(cell, name, others)
        for path in (cell.directory / name, *(cell.directory / other for other in others))
        if path.exists()
    ]


def remove_stale_explanation(cell: Cell) -> None:
    """Removes the page of `dsm explain` if it is stale, and prints that.

    The page of `dsm explain --nsa` is an output of DVC, which knows when it is stale.
    """
    stale = [path for path in stale_pages(cell) if path.stem == "explanation"]
    for path in stale:
        path.unlink()
    if stale:
        print(
            f"{cell.name}: removed explanation.html, which was made from other results; `dsm explain` makes a new one"
        )


def _is_current(cell: Cell, name: str, others: tuple[str, ...]) -> bool:
    try:
        content = read_json(cell.directory / name)
    except (OSError, ValueError):  # missing, or not JSON
        content = None
    of, written = (content.get(OF), content.get(WITH)) if isinstance(content, dict) else (None, None)
    if not of or not isinstance(of, dict) or not isinstance(written, dict) or set(written) != set(others):
        return False
    paths = {file: cell.directory / file for file in of | written} | {cell.test.name: cell.test}
    return all(paths[file].is_file() and sha256_file(paths[file]) == sha256 for file, sha256 in (of | written).items())
