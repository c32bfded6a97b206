"""A failed run is reported to the webhook, and a webhook that does not answer does no harm."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from flows.notify import WEBHOOK, tell
from flows.retrain import retrain
from flows.run_states import cancelled_by_ctrl_c

FLOW = SimpleNamespace(name="retrain")
RUN = SimpleNamespace(id="11-22", name="nightly", parameters={"models": None})
STATE = SimpleNamespace(name="Failed", message="tiny-reviews: no such file")


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The requests that a server on 127.0.0.1 received."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{server.server_port}/")
        yield got
        server.shutdown()


def test_the_webhook_hears_what_failed(webhook: list[Any]) -> None:
    tell(FLOW, RUN, STATE)  # type: ignore[arg-type]
    assert webhook == [
        {
            "text": "retrain nightly: Failed: tiny-reviews: no such file",
            "flow_run": "11-22",
            "state": "Failed",
            "parameters": {"models": None},
        }
    ]


def test_a_webhook_that_is_gone_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(WEBHOOK, "http://127.0.0.1:9/")
    monkeypatch.setattr("flows.notify.get_logger", lambda name: logging.getLogger("dsm"))
    tell(FLOW, RUN, STATE)  # type: ignore[arg-type]
    assert f"{WEBHOOK} did not accept the message" in caplog.text


def test_nothing_is_sent_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK, raising=False)
    monkeypatch.setattr("httpx.post", lambda *_, **__: pytest.fail("sent"))
    tell(FLOW, RUN, STATE)  # type: ignore[arg-type]


def test_every_end_that_is_none_is_told() -> None:
    assert retrain.on_failure_hooks == retrain.on_cancellation_hooks == [tell]
    assert retrain.on_crashed_hooks == [tell, cancelled_by_ctrl_c]
