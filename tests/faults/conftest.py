"""The fixtures of the flows' tests."""

from tests.flows.conftest import _isolated, project, said

__all__ = ["_isolated", "project", "said"]
