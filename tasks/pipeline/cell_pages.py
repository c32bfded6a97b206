"""Pages that are made of a cell's files on request: which of those files each one is about.

The JSON file beside a page holds the hashes of the files it was made of and of those it was written with. It is written
last, so that a page is believed only when all of them are in place.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.pipeline.cell import Cell
from tasks.runtime.files import read_json, replacing, sha256_file, write_json

# The JSON file -> what is written with it.
PAGES: Mapping[str, tuple[str, ...]] = {
    "explanation.json": ("explanation.html",),
    "nsa.json": ("nsa.html", "nsa.safetensors"),
}
OF, WITH = "made_of", "written_with"


def made_of(*paths: Path) -> dict[str, str]:
    """Names and SHA-256 of files that a page is made of. Take them before the work: a file may change during it."""
    return {path.name: sha256_file(path) for path in paths}


def write_page(cell: Cell, name: str, found: dict[str, Any], of: Mapping[str, str], files: Mapping[str, bytes]) -> None:
    """Writes the files and then the JSON file `name`.

    Args:
        of: from `made_of`.
        files: content by name.
    """
    for file, content in files.items():
        with replacing(cell.directory / file) as temporary:
            temporary.write_bytes(content)
    written = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    write_json(cell.directory / name, found | {OF: dict(of), WITH: written})


def stale_pages(cell: Cell) -> list[Path]:
    """The files of pages that are not about the files that the cell has now, or are not whole."""
    return [
        path
        for name, others in PAGES.items()
        if not _is_current(cell, name, others)
        for path in (cell.directory / name, *(cell.directory / other for other in others))
        if path.exists()
    ]


def remove_stale_explanation(cell: Cell) -> None:
    """Removes the page of `dsm explain` if it is about other files than the cell has now, and says so.

    That of `dsm explain --nsa` is an output of DVC, which knows when it is stale.
    """
    stale = [path for path in stale_pages(cell) if path.stem == "explanation"]
    for path in stale:
        path.unlink()
    if stale:
        print(f"{cell.name}: removed explanation.html, which was about other results; `dsm explain` makes a new one")


def _is_current(cell: Cell, name: str, others: tuple[str, ...]) -> bool:
    try:
        found = read_json(cell.directory / name)
    except (OSError, ValueError):  # not there, or not JSON
        found = None
    of, written = (found.get(OF), found.get(WITH)) if isinstance(found, dict) else (None, None)
    if not of or not isinstance(of, dict) or not isinstance(written, dict) or set(written) != set(others):
        return False
    places = {file: cell.directory / file for file in written} | {cell.test.name: cell.test}
    return all(
        (place := places.get(file, cell.directory / file)).is_file() and sha256_file(place) == sha256
        for file, sha256 in (of | written).items()
    )
