"""A page belongs to the files it was made from, and is complete."""

import pytest

from tasks.pipeline.cell_pages import PAGES, made_of, stale_pages, write_page
from tasks.runtime.files import read_json, write_json
from tests.cells import write_cell


@pytest.fixture
def cell(tmp_path):
    cell = write_cell(tmp_path)
    cell.test.parent.mkdir(parents=True)
    cell.test.write_bytes(b"rows")
    return cell


def write(cell, name):
    of = made_of(cell.scores, cell.pruned, cell.predictions, cell.samples, cell.test)
    write_page(cell, name, {"n": 1}, of, {file: file.encode() for file in PAGES[name]})


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_files_that_are_there_is_not_stale(cell, name):
    assert stale_pages(cell) == []
    write(cell, name)
    assert stale_pages(cell) == []
    assert read_json(cell.directory / name)["n"] == 1


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("changed", ["scores", "pruned", "predictions", "samples", "test"])
@pytest.mark.parametrize("how", ["other bytes", "gone"])
def test_a_page_of_other_files_is_stale(cell, name, changed, how):
    write(cell, name)
    path = getattr(cell, changed)
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")
    assert {path.name for path in stale_pages(cell)} == {name, *PAGES[name]}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_is_not_whole_is_stale(cell, name):
    write(cell, name)
    first, *_ = PAGES[name]
    page, about = cell.directory / first, cell.directory / name
    whole, told = page.read_bytes(), read_json(about)
    page.write_bytes(b"a later page, killed before its JSON file was written")
    assert page in stale_pages(cell)
    page.write_bytes(whole)
    assert stale_pages(cell) == []
    for broken in ({"n": 1}, [], told | {"made_of": {}}, told | {"written_with": {}}):  # the first: an older version's
        write_json(about, broken)
        assert page in stale_pages(cell)
    about.write_text("{")
    assert page in stale_pages(cell)
    about.unlink()
    assert page in stale_pages(cell)
