"""The fixtures of the flows' tests."""

from tests.flows.conftest import _isolated, finished_stand_ins, project, said

__all__ = ["_isolated", "finished_stand_ins", "project", "said"]
