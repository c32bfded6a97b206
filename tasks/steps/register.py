"""register: log a cell as an MLflow run and register its pruned model."""

from tasks.pipeline.step import run_step
from tasks.tracking.record import register

if __name__ == "__main__":
    run_step(register, description=__doc__)
