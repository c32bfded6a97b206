"""The champion over HTTP, with MLflow's own scoring server: it answers as evaluated, and errors are one line."""

import json
import math
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from flows.environment import child_environment
from tasks.pipeline.cell import Cell
from tasks.steps.register import register
from tasks.tracking.store import CHAMPION, tracking_uri
from tests.servers import Server, free_port
from tests.tracking.test_register import NAME, cell, master, on_a_file, pytestmark  # noqa: F401

MALFORMED: list[tuple[Any, int, str]] = [
    ({"dataframe_records": [{"wrong": "a film"}]}, 400, "Model is missing inputs ['text']"),
    ({"dataframe_records": [{"text": "a film"}, {"text": None}]}, 400, "row 2: text must be a text, not"),
    ({"dataframe_records": [{"text": ["a film"]}]}, 400, "row 1: text must be a text, not ['a film']"),
    ({"dataframe_records": [{"text": "long " * 300}]}, 400, "tokens, but the model's context has 512"),
    ({"dataframe_records": []}, 400, "Model is missing inputs ['text']"),
    ({"dataframe_split": {"columns": ["text"], "data": []}}, 400, "request: has no rows"),
    ({"rows": [{"text": "a film"}]}, 400, "The input must be a JSON dictionary with exactly one of the input fields"),
    (b"{no json", 400, "Ensure that input is a valid JSON formatted string"),
]


def ask(server: Server, body: Any, kind: str = "application/json") -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.address}/invocations", data=data, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
@on_a_file
def test_the_champion_answers_over_http(cell: Cell) -> None:  # noqa: F811
    register(cell)
    uri, port = tracking_uri(cell.root), free_port()
    MlflowClient(uri, uri).set_registered_model_alias(NAME, CHAMPION, "1")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{NAME}@{CHAMPION}"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    # MLflow starts `uvicorn` by its name: the environment's programs must be on the PATH.
    path = child_environment()["PATH"]
    server = Server(command, port=port, alive="/ping", where=cell.root, MLFLOW_TRACKING_URI=uri, PATH=path)
    try:
        assert server.listens_on() == {("127.0.0.1", port)}
        frame = pd.read_parquet(cell.predictions)
        rows = [{"text": prompt.split("\n\n")[1]} for prompt in frame["prompt"]]
        status, body = ask(server, {"dataframe_records": rows})
        assert status == 200, body
        answers = json.loads(body)["predictions"]
        assert [answer["option"] for answer in answers] == [["negative", "positive"][i] for i in frame["pruned"]]
        for answer, logprobs in zip(answers, frame["pruned_logprobs"], strict=True):
            expected = 1 / (1 + math.exp(logprobs[0] - logprobs[1]))
            assert answer["p(positive)"] == pytest.approx(expected, abs=1e-4)
            assert answer["p(negative)"] == pytest.approx(1 - expected, abs=1e-4)
        for malformed, code, told in MALFORMED:
            status, body = ask(server, malformed)
            assert (status, told in json.loads(body)["message"]) == (code, True), body
            assert "stack_trace" not in body
            assert "Traceback" not in body
        for body, kind in ((b'text\n"a film', "text/csv"), (b"PAR1", "application/vnd.apache.parquet")):
            status, told = ask(server, body, kind)
            assert status in (400, 415)
            assert "Traceback" not in told
            assert "site-packages" not in told
        assert ask(server, b"text\na film\n", "text/plain")[0] == 415
        assert ask(server, b"text\na film\n", "text/csv")[0] == 200
        # A burst: twenty clients with ten texts of all lengths each get the answers that a single client got.
        texts = [f"a film about {'very ' * (3 * i)}long films" for i in range(10)]
        alone = [ask(server, {"dataframe_records": [{"text": text}]}) for text in texts]
        with ThreadPoolExecutor(20) as clients:
            answers = list(clients.map(lambda text: ask(server, {"dataframe_records": [{"text": text}]}), texts * 20))
        assert answers == alone * 20
        assert {status for status, _ in answers} == {200}
    finally:
        server.end()
