"""The registered model: MLflow runs this file ("models from code") where a version is loaded; nothing is pickled.

Its checkpoint is a plain Hugging Face directory, its template and options come with the version as configuration.
Where every row of the benchmark has options of its own, the prompt and its options are the input.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from tasks.benchmarks.encoding import encode
from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.templates import compile_template
from tasks.models.loading import load
from tasks.models.stack import DecoderStack


class PrunedModel(PythonModel):
    """Fields of the benchmark's prompt in; the most probable option and the probability of each out."""

    def load_context(self, context: Any) -> None:
        """Loads the checkpoint and compiles the template; MLflow calls it once."""
        config = context.model_config
        self._loaded = load(Path(context.artifacts["checkpoint"]))
        self._options: list[str] | None = config["options"]  # None: every row brings its own
        self._names: list[str] = list(config["names"])
        self._prompt = compile_template(config["prompt"], field="prompt")
        self._chat = bool(config["chat"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """`answer` to the prompts that the template makes of the rows; a column for each field of the template.

        Without options of the benchmark's own: to the columns `prompt` and `options`, a list.
        """
        if self._options is None:
            return self.answer(model_input["prompt"].tolist(), [list(options) for options in model_input["options"]])
        columns = [str(column) for column in model_input]
        rows = [dict(zip(columns, row, strict=True)) for row in model_input.itertuples(index=False)]
        return self.answer([self._prompt(row, number) for number, row in enumerate(rows, start=1)])

    def answer(self, prompts: list[str], options: list[list[str]] | None = None) -> pd.DataFrame:
        """Answers to whole prompts, with the benchmark's options or with those of each row.

        Returns:
            One row per prompt: `option`, and a column `p(<option>)` for each option: softmax of the log-probabilities
            of the options given the prompt. Where rows bring their own: `option`, and `p`, the list of them.
        """
        choices = options if self._options is None else [self._options] * len(prompts)
        if choices is None:
            raise ValueError("this benchmark's rows have options of their own: give a list for each prompt")
        probabilities = self._probabilities(prompts, choices)
        if self._options is None:
            best = [row[int(p.argmax())].strip() for row, p in zip(choices, probabilities, strict=True)]
            return pd.DataFrame({"option": best, "p": [p.tolist() for p in probabilities]})
        table = np.array(probabilities).reshape(len(prompts), len(self._options))
        frame = pd.DataFrame(table, columns=[f"p({name})" for name in self._names])
        frame.insert(0, "option", [self._names[int(p.argmax())] for p in probabilities])
        return frame

    def _probabilities(self, prompts: list[str], options: list[list[str]]) -> list[np.ndarray]:
        stack, tokenizer = DecoderStack(self._loaded.model), self._loaded.tokenizer
        rows = [
            encode(tokenizer, prompt, choices, stack.context, chat=self._chat)
            for prompt, choices in zip(prompts, options, strict=True)
        ]
        logprobs = [row[0].astype(np.float64) for row in answers_unedited(stack, rows).logprobs]
        exponential = [np.exp(row - row.max()) for row in logprobs]
        return [row / row.sum() for row in exponential]


set_model(PrunedModel())
