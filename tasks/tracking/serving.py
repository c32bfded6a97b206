"""The registered model. MLflow runs this file when it loads a version ("models from code"); nothing is pickled.

The checkpoint is a plain Hugging Face directory. The prompt template and the options are the version's configuration.
If every row of the benchmark has its own options, the input is the prompt with its options.
"""

import logging
import sys
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from scipy.special import softmax

from tasks.benchmarks.columns import ABSENT, check_kinds
from tasks.benchmarks.encoding import Encoded, encode
from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.templates import compile_template
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError

_LOGGER = logging.getLogger(__name__)


class Told(MlflowException):
    """An error of one line for the client. To other exceptions, MLflow's scoring server adds the whole request."""

    def __init__(self, line: str, code: int):
        super().__init__(line, error_code=code)
        self._line = line

    def serialize_as_json(self) -> str:
        """The body that the scoring server sends."""
        self.message = self._line
        return str(super().serialize_as_json())  # type: ignore[no-untyped-call]


class PrunedModel(PythonModel):
    """Takes the fields of the benchmark's prompt, and returns the most probable option and the probability of each.

    Requests from several threads are answered one after the other: a run changes hooks and the attention of the model,
    and a single request already uses all cores.
    """

    def load_context(self, context: Any) -> None:
        """Loads the checkpoint and compiles the template. MLflow calls this once."""
        config = context.model_config
        self._loaded = load(Path(context.artifacts["checkpoint"]))
        self._stack = DecoderStack(self._loaded.model)
        self._alone = Lock()
        self._options: list[str] | None = config["options"]  # None: every row has its own
        self._names: list[str] = list(config["names"])
        self._prompt = compile_template(config["prompt"], field="prompt")
        self._kinds: dict[str, list[str]] = config["kinds"]
        self._chat = config["chat"]
        _send_no_tracebacks()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Renders the prompts from the rows and answers them as `answer` does.

        Args:
            model_input: a column for each field of the template; if rows have their own options, the columns `prompt`
                and `options`, a list.

        Raises:
            Told: a row cannot be answered (the scoring server sends status 400 and the reason), or the model failed
                (status 500; the log has the reason).
        """
        try:
            prompts, choices = self._asked(model_input)
            encoded = self._encoded(prompts, choices)
        except InputError as error:
            raise Told(" ".join(str(error).split()), INVALID_PARAMETER_VALUE) from None
        except Exception:
            raise _failed() from None
        try:
            return self._table(encoded, choices)
        except Exception:
            raise _failed() from None

    def _asked(self, frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
        """The prompt and the options of each row."""
        columns = [str(column) for column in frame]
        rows = [dict(zip(columns, row, strict=True)) for row in frame.itertuples(index=False)]
        if not rows:
            raise InputError("request", "has no rows")
        if self._options is None:
            return self._own_options(rows)
        self._refuse_mixed_numbers(frame)
        wanted = [
            {name: check_kinds(name, number, row[name], kinds) for name, kinds in self._kinds.items() if name in row}
            for number, row in enumerate(rows, start=1)
        ]
        wanted = [{name: value for name, value in row.items() if value is not ABSENT} for row in wanted]
        prompts = [self._prompt(row, number) for number, row in enumerate(wanted, start=1)]
        return prompts, [self._options] * len(prompts)

    def _refuse_mixed_numbers(self, frame: pd.DataFrame) -> None:
        """Refuses a column of integers and other numbers: a data frame does not distinguish 3 from 3.0."""
        for name, kinds in self._kinds.items():
            mixed = {"integer", "number"} <= set(kinds) and name in frame and len(frame) > 1
            if mixed and any(isinstance(value, float) and value.is_integer() for value in frame[name]):
                raise InputError("request", f"{name} has integers and other numbers; send such rows one by one")

    def _own_options(self, rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
        for number, row in enumerate(rows, start=1):
            if not isinstance(row["prompt"], str):
                raise InputError(f"row {number}", f"prompt must be a text, not {row['prompt']!r:.60}")
            given = row["options"]
            texts = list(given) if isinstance(given, (list, tuple, np.ndarray)) else []
            if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
                raise InputError(f"row {number}", "options must be a list of at least two texts")
        return [row["prompt"] for row in rows], [list(row["options"]) for row in rows]

    def answer(self, prompts: list[str], options: list[list[str]] | None = None) -> pd.DataFrame:
        """Answers whole prompts, with the benchmark's options or with those of each row.

        Returns:
            One row per prompt: `option`, and a column `p(<option>)` for each option: softmax of the log-probabilities
            of the options given the prompt. If rows have their own options: `option`, and `p`, a list of these.
        """
        choices = options if self._options is None else [self._options] * len(prompts)
        if choices is None:
            raise ValueError("this benchmark's rows have options of their own: give a list for each prompt")
        return self._table(self._encoded(prompts, choices), choices)

    def _encoded(self, prompts: list[str], options: list[list[str]]) -> list[Encoded]:
        with self._alone:  # each call changes settings of the tokenizer
            return [
                encode(self._loaded.tokenizer, prompt, choices, self._stack.context, chat=self._chat)
                for prompt, choices in zip(prompts, options, strict=True)
            ]

    def _table(self, rows: list[Encoded], options: list[list[str]]) -> pd.DataFrame:
        with self._alone:
            answers = answers_unedited(self._stack, rows)
        probabilities = [softmax(row[0].astype(np.float64)) for row in answers.logprobs]
        if self._options is None:
            best = [row[int(p.argmax())].strip() for row, p in zip(options, probabilities, strict=True)]
            return pd.DataFrame({"option": best, "p": [p.tolist() for p in probabilities]})
        table = np.array(probabilities).reshape(len(rows), len(self._options))
        frame = pd.DataFrame(table, columns=[f"p({name})" for name in self._names])
        frame.insert(0, "option", [self._names[int(p.argmax())] for p in probabilities])
        return frame


def _failed() -> Told:
    """The error for the client. The exception that is being handled is logged."""
    _LOGGER.exception("a request failed")
    return Told("the model failed; the server's log says why", INTERNAL_ERROR)


def _send_no_tracebacks() -> None:
    """Removes the traceback from the reply of MLflow's scoring server to a body that it cannot parse.

    MLflow has no setting for this. Other processes that load a version are not changed.
    """
    if "mlflow.pyfunc.scoring_server.app" in sys.modules:
        serialize: Any = MlflowException.serialize_as_json

        def without(error: MlflowException) -> str:
            error.json_kwargs.pop("stack_trace", None)
            return str(serialize(error))

        MlflowException.serialize_as_json = without  # type: ignore[method-assign]


set_model(PrunedModel())
