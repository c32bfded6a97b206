"""Tests that share a fixture of their module run on one worker of pytest-xdist, so that the fixture is set up once."""

import os

import pytest


@pytest.fixture(scope="module")
def shared() -> None:
    pass


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there are no workers: pytest -n")
@pytest.mark.usefixtures("shared")
def test_pytest_xdist_sees_the_group(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@tests/test_grouping.py")
