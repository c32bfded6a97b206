"""The registered model: MLflow runs this file ("models from code") where a version is loaded; nothing is pickled.

Its checkpoint is a plain Hugging Face directory, its template and options come with the version as configuration.
Where every row of the benchmark has options of its own, the prompt and its options are the input.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from tasks.benchmarks.encoding import encode
from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.templates import compile_template
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.errors import InputError


class PrunedModel(PythonModel):
    """Fields of the benchmark's prompt in; the most probable option and the probability of each out."""

    def load_context(self, context: Any) -> None:
        """Loads the checkpoint and compiles the template; MLflow calls it once."""
        config = context.model_config
        self._loaded = load(Path(context.artifacts["checkpoint"]))
        self._options: list[str] | None = config["options"]  # None: every row brings its own
        self._names: list[str] = list(config["names"])
        self._prompt = compile_template(config["prompt"], field="prompt")
        self._chat = config["chat"]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """`answer` to the prompts that the template makes of the rows; a column for each field of the template.

        Without options of the benchmark's own: to the columns `prompt` and `options`, a list.

        Raises:
            MlflowException: a row cannot be answered. MLflow's scoring server sends that as status 400 with the reason;
                of any other exception it sends the traceback too.
        """
        try:
            return self._answer_rows(model_input)
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _answer_rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        columns = [str(column) for column in frame]
        rows = [dict(zip(columns, row, strict=True)) for row in frame.itertuples(index=False)]
        for number, row in enumerate(rows, start=1):
            for name, value in row.items():
                if self._options is None and name == "options":
                    texts = list(value) if isinstance(value, (list, tuple, np.ndarray)) else []
                    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
                        raise InputError(f"row {number}", "options must be a list of at least two texts")
                elif not isinstance(value, str):
                    raise InputError(f"row {number}", f"{name} must be a text, not {value!r:.60}")
        if self._options is None:
            return self.answer([row["prompt"] for row in rows], [list(row["options"]) for row in rows])
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
