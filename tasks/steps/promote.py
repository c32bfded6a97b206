"""promote: judge the challenger against the champion on the same test rows, and move the alias if it is better."""

from tasks.pipeline.step import run_step
from tasks.tracking.promotion import judge

if __name__ == "__main__":
    run_step(judge, description=__doc__)
