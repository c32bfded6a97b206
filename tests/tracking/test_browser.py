"""Pages in a real browser: the report, and the tracker's pages of a registered cell."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tasks.evidence.verdict import verdict
from tasks.pipeline.cell import Cell
from tasks.runtime.files import read_json
from tasks.steps.report import report
from tasks.tracking.leaderboard import results_page
from tasks.tracking.store import FLOW, tracking_uri
from tests.cells import servable_cell, write_cell
from tests.servers import Server, free_port

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--no-first-run", "--no-pings",
]  # fmt: skip
FLOW_RUN = "nightly-owl"
PATIENCE = 60_000  # ms: a cold server on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


def sentences(cell: Cell) -> list[str]:
    told = verdict(read_json(cell.pruned), read_json(cell.evaluation))
    return [told.headline, told.sentence, told.control]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 400, 1280])
def test_report(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    cell = write_cell(tmp_path, text="{i} " + "unbreakable" * 60)
    report(cell)
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(cell.report.as_uri())
    shown = " ".join(page.inner_text("body").replace("\u00a0", " ").split())
    for sentence in sentences(cell):
        assert sentence in shown
    assert page.locator("header h1").is_visible()
    assert page.locator("#results svg").bounding_box()["width"] > 200
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    for figure in page.locator("figure").all():
        assert figure.evaluate(SMALLEST) >= 7.5, "the text of a figure is too small to read"
        if width >= 400:
            assert figure.evaluate("f => f.firstElementChild.scrollWidth <= f.firstElementChild.clientWidth"), "cropped"
    # Every text has enough contrast with its background (WCAG AA): the verdict and the captions represent all texts.
    for selector in ("h1", "#verdict", "figcaption", "summary"):
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector
    page.close()


# Of the figure's texts, in pixels of the screen.
SMALLEST = """figure => Math.min(...[...figure.querySelectorAll("text")].map(text =>
  parseFloat(getComputedStyle(text).fontSize) * Math.hypot(text.getScreenCTM().c, text.getScreenCTM().d)))"""

CONTRAST = """selector => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const element = document.querySelector(selector);
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const pair = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Cell]]:
    """The address of a real MLflow server on a store with one registered cell, and the cell."""
    cell = servable_cell(tmp_path_factory.mktemp("tracked"))
    report(cell)
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    arguments = ["--model", cell.model, "--benchmark", cell.benchmark]
    repository = str(Path(__file__).parents[2])
    environment |= {"PYTHONPATH": repository, FLOW: f"0-1 {FLOW_RUN}"}
    subprocess.run(
        [sys.executable, "-m", "tasks.steps.register", *arguments],
        cwd=cell.root,
        env=environment,
        check=True,
        timeout=200,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = (cell.root / "server.log").open("w")
    server = subprocess.Popen(
        [*command, "--backend-store-uri", tracking_uri(cell.root)],
        cwd=cell.root, env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, server, cell.root / "server.log")
        yield address, cell
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
        log.close()


def _wait(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server does not answer: {log.read_text()}")


@pytest.mark.slow
def test_tracker_shows_the_run_its_metrics_and_the_model(browser: Any, tracked: tuple[str, Cell]) -> None:
    address, cell = tracked
    page = browser.new_page(viewport={"width": 1900, "height": 1200})
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address + results_page("1"))
    page.get_by_text("Results of 1 cell").first.wait_for()
    for column in ("accuracy_pruned", "exact_match_pruned"):  # the saved view, without a click
        page.get_by_role("columnheader", name=column).first.wait_for()
    page.get_by_role("link", name="tiny on reviews, ").first.click()
    page.get_by_text(sentences(cell)[1]).first.wait_for()
    accuracy = read_json(cell.evaluation)["systems"]["pruned"]["accuracy"]
    row = page.get_by_role("row").filter(has_text="accuracy_pruned")
    row.wait_for()
    assert f"{accuracy:.3g}" in row.inner_text()
    page.goto(page.url.split("?")[0] + "/artifacts/report.html")
    page.frame_locator("iframe").get_by_text(sentences(cell)[0]).first.wait_for()
    page.go_back()
    page.get_by_role("tab", name="System metrics").click()
    page.get_by_text("cpu_utilization_percentage").first.wait_for()
    page.get_by_role("tab", name="Overview").click()
    page.get_by_role("link", name=cell.name).last.click()  # the registered model
    page.get_by_text("@ challenger").first.wait_for()
    page.get_by_text(sentences(cell)[1]).first.wait_for()
    assert elsewhere(asked) == set()
    page.close()


def elsewhere(asked: list[str]) -> set[str | None]:
    """The hosts of these addresses, without this machine."""
    return {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} - {"127.0.0.1"}


@pytest.mark.slow
def test_prefects_pages_ask_no_other_host(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server as docs/operations.md starts it, in a directory with the project's settings, without variables."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")] + ["DO_NOT_TRACK"]:
        monkeypatch.delenv(name, raising=False)
    shutil.copy(Path(__file__).parents[2] / "pyproject.toml", tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    home, ours = str(tmp_path / "prefect"), f"http://127.0.0.1:{port}/api"
    server = Server(
        command, port=port, alive="/api/health", where=tmp_path, PREFECT_HOME=home, PREFECT_UI_API_URL=ours,
        DO_NOT_TRACK="0",
    )  # fmt: skip
    asked: list[str] = []
    try:
        with urllib.request.urlopen(f"{ours}/admin/settings", timeout=30) as settings:
            assert json.load(settings)["server"]["analytics_enabled"] is False
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        for path in ("/", "/runs", "/deployments"):
            page.goto(server.address + path)
            page.wait_for_load_state("networkidle")
            assert "/v2" not in page.url
        page.get_by_text("Deployments").first.wait_for()
        page.close()
    finally:
        server.end()
    assert any(url.startswith(ours) for url in asked)
    assert elsewhere(asked) == set()
