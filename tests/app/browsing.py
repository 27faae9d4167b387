"""A page in a real Chromium, with every other host out of reach: what its tests share."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = os.environ.get("WSI_CHAT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    # no name but this machine's own is ever resolved
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]  # fmt: skip
SLIDES = (
    "look", "choose", "ask", "stop", "decide", "two", "draw", "export", "layers", "reach", "again", "attack",
    "theme",
)  # fmt: skip
NAME = "<img src=x onerror='window.attacked=1'>.tiff"

IN_A_BROWSER = [
    pytest.mark.skipif(not os.environ.get("WSI_CHAT_TEST_PAGE"), reason="in a browser: make test-page"),
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium here: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="pip install playwright"),
]


@dataclass(frozen=True)
class Serving:
    url: str
    port: int
    token: str | None
    root: Path

    def at(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/s/{name}"


def start(source: Path, *more: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [sys.executable, "-m", "tests.app.page_server", str(source), *more]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    environ.pop("PYTEST_CURRENT_TEST", None)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the page did not start"
    return process, json.loads(line)


@pytest.fixture(scope="module")
def serving(analyzed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server; every test has a slide of its own, a copy of the analyzed one."""
    root = tmp_path_factory.mktemp("page") / "run"
    root.mkdir()
    for name in SLIDES:
        shutil.copytree(analyzed, root / name)
    record = json.loads((analyzed.parent / "run.json").read_text(encoding="utf-8"))
    record["slides"] = dict.fromkeys(SLIDES, record["slides"][analyzed.name])
    (root / "run.json").write_text(json.dumps(record), encoding="utf-8")
    report = json.loads((root / "attack" / "report.json").read_text(encoding="utf-8"))
    report["slide"]["file_name"] = NAME
    for finding in report["verdict"]["findings"]:
        finding["name"] = "<b onmouseover='window.attacked=1'>HSIL</b>"
    report["verdict"]["reason"] = "<script>window.attacked=1</script>"
    (root / "attack" / "report.json").write_text(json.dumps(report), encoding="utf-8")
    rows = [f"{name},{name}.tiff,done,abnormal,0.{9 - n % 9}" for n, name in enumerate(SLIDES)]
    (root / "summary.csv").write_text("slide_id,file,state,status,score\n" + "\n".join(rows) + "\n", encoding="utf-8")
    process, place = start(root)
    yield Serving(place["url"], place["port"], place["token"], root)
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def context(browser: Browser, serving: Serving) -> Iterator[BrowserContext]:
    """A browser without a past. The test fails where the page asked another host, or threw."""
    made = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    made.set_default_timeout(15_000)
    elsewhere: list[str] = []
    errors: list[str] = []
    ours = (f"http://127.0.0.1:{serving.port}/", f"ws://127.0.0.1:{serving.port}/", "data:", "blob:")
    made.on("request", lambda request: None if request.url.startswith(ours) else elsewhere.append(request.url))
    made.on("weberror", lambda error: errors.append(str(error.error)))
    yield made
    made.close()
    assert elsewhere == []
    assert errors == []


def open_page(context: BrowserContext, serving: Serving, name: str, *, reviewer: str = "") -> Page:
    page = context.new_page()
    if reviewer:
        page.add_init_script(
            f"localStorage.getItem('wsi-chat-reviewer') || localStorage.setItem('wsi-chat-reviewer', '{reviewer}')"
        )
    page.goto(serving.at(name))
    page.locator(".wsi-status").wait_for()
    page.locator(".leaflet-tile-loaded").first.wait_for()
    if reviewer:
        page.get_by_test_id("reviewer").get_by_text(reviewer).wait_for()
    return page


def power(page: Page) -> float:
    return float(page.locator(".wsi-status .power").inner_text().rstrip("×"))


def reviewed(page: Page) -> int:
    return int(re.split(r"\D+", page.get_by_test_id("progress").inner_text())[0])


def wait_progress(page: Page, done: int) -> None:
    page.wait_for_function("n => parseInt(document.querySelector('[data-testid=progress]').innerText) === n", arg=done)


def on_map(page: Page, script: str) -> Any:
    """Ask the map: in ``script`` it is ``map``."""
    return page.evaluate(f"() => {{ const map = document.querySelector('.wsi-viewer').wsiMap; return ({script}); }}")
