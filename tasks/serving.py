"""The registered model: MLflow runs this file ("models from code") where a version is loaded; nothing is pickled.

Its checkpoint is a plain Hugging Face directory, its template and options come with the version as configuration.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from tasks.benchmarks.scoring import option_logprobs
from tasks.benchmarks.templates import compile_template
from tasks.models.loading import load


class PrunedModel(PythonModel):
    """Fields of the benchmark's prompt in; the most probable option and the probability of each out."""

    def load_context(self, context: Any) -> None:
        """Loads the checkpoint and compiles the template; MLflow calls it once."""
        self._loaded = load(Path(context.artifacts["checkpoint"]))
        self._options: list[str] = list(context.model_config["options"])
        self._names: list[str] = list(context.model_config["names"])
        self._prompt = compile_template(context.model_config["prompt"], field="prompt")

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """`answer` to the prompts that the template makes of the rows; a column for each field of the template."""
        columns = [str(column) for column in model_input]
        rows = [dict(zip(columns, row, strict=True)) for row in model_input.itertuples(index=False)]
        return self.answer([self._prompt(row, number) for number, row in enumerate(rows, start=1)])

    def answer(self, prompts: list[str]) -> pd.DataFrame:
        """Answers to whole prompts.

        Returns:
            One row per prompt: `option`, and a column `p(<option>)` for each option: softmax of the log-probabilities
            of the options given the prompt.
        """
        logprobs = np.array(option_logprobs(self._loaded, prompts, [self._options] * len(prompts)), dtype=np.float64)
        logprobs = logprobs.reshape(len(prompts), len(self._options))
        exponential = np.exp(logprobs - logprobs.max(axis=1, keepdims=True))
        probabilities = exponential / exponential.sum(axis=1, keepdims=True)
        frame = pd.DataFrame(probabilities, columns=[f"p({name})" for name in self._names])
        frame.insert(0, "option", [self._names[index] for index in logprobs.argmax(axis=1)])
        return frame


set_model(PrunedModel())
