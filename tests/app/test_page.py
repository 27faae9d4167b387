"""The page in a real Chromium, with every other host out of reach. Run by ``make test-page``."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import numpy as np
import pytest
import tifffile

from tilers import open_slide

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

pytestmark = [
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


# ------------------------------------------------------------------------------------------------ looking


def test_the_wheel_zooms_where_the_pointer_is_and_sharper_squares_come(
    context: BrowserContext, serving: Serving
) -> None:
    page = open_page(context, serving, "look")
    before, far = power(page), page.locator(".leaflet-tile").first.get_attribute("src")
    box = page.get_by_test_id("map").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    held = on_map(page, "map.containerPointToLatLng([map.getSize().x / 4, map.getSize().y / 2]).lng")
    with page.expect_response(re.compile(r"/squares/0/")):
        for _ in range(4):
            page.mouse.wheel(0, -300)
            page.wait_for_timeout(250)
    assert power(page) > 2 * before
    assert "/squares/0/" not in (far or "")
    after = on_map(page, "map.containerPointToLatLng([map.getSize().x / 4, map.getSize().y / 2]).lng")
    assert abs(after - held) < 25  # level-0 px: the place under the pointer stays there
    assert page.locator(".leaflet-control-scale-line").inner_text().endswith("µm")
    assert page.locator(".wsi-status .where").inner_text().startswith("x ")


def test_keys_give_the_magnification_and_the_whole_slide(context: BrowserContext, serving: Serving) -> None:
    page = open_page(context, serving, "look")
    whole = power(page)
    for key, wanted in (("1", 10), ("2", 20), ("4", 40)):
        page.keyboard.press(key)
        page.wait_for_function(f"document.querySelector('.wsi-status .power').innerText === '{wanted}×'")
    # 20x is 0.5 um/px: one slide pixel of this scan on one of the screen
    page.keyboard.press("2")
    page.wait_for_timeout(500)
    assert on_map(page, "map.getZoom()") == pytest.approx(0)
    page.keyboard.press("0")
    page.wait_for_timeout(500)
    assert power(page) == pytest.approx(whole, rel=0.02)


def test_a_finding_in_the_list_is_flown_to_and_one_on_the_slide_is_chosen(
    context: BrowserContext, serving: Serving
) -> None:
    page = open_page(context, serving, "choose")
    row = page.get_by_test_id("findings").locator("tbody tr[data-id]").nth(2)
    name = row.get_attribute("data-id")
    row.click()
    page.get_by_test_id("chosen").get_by_text(str(name)).wait_for()
    page.wait_for_timeout(400)
    report = json.loads((serving.root / "choose" / "report.json").read_text(encoding="utf-8"))
    places = {f["id"]: f["box"] for f in report["verdict"]["findings"]}
    center = on_map(page, "[map.getCenter().lng, map.getCenter().lat]")
    box = places[str(name)]
    assert box["x0"] <= center[0] <= box["x1"]
    assert box["y0"] <= center[1] <= box["y1"]
    other = next(f["id"] for f in report["verdict"]["findings"] if f["id"] != name)
    page.keyboard.press("0")
    page.wait_for_timeout(500)
    x, y = (places[other]["x0"] + places[other]["x1"]) / 2, (places[other]["y0"] + places[other]["y1"]) / 2
    spot = on_map(page, f"(p => [p.x, p.y])(map.latLngToContainerPoint([{y}, {x}]))")
    area = page.get_by_test_id("map").bounding_box()
    assert area is not None
    page.mouse.click(area["x"] + spot[0], area["y"] + spot[1])
    page.get_by_test_id("chosen").get_by_text(other).wait_for()
    page.keyboard.press("n")
    page.keyboard.press("p")
    page.get_by_test_id("chosen").get_by_text(other).wait_for()


def test_filter_and_layers(context: BrowserContext, serving: Serving) -> None:
    page = open_page(context, serving, "layers")
    rows = page.get_by_test_id("findings").locator("tbody tr[data-id]")
    every = rows.count()
    page.locator("input[data-class=lsil]").uncheck()
    page.wait_for_function(
        "n => document.querySelectorAll('[data-testid=findings] tbody tr[data-id]').length < n", arg=every
    )
    assert all("LSIL" not in text for text in rows.all_inner_texts())
    page.get_by_test_id("threshold").fill("0.99")
    page.get_by_text("No finding passes the filter.").wait_for()
    with page.expect_response(lambda answer: answer.url.endswith("/heat.png") and answer.status == 200):
        page.keyboard.press("h")
    page.locator("img.wsi-layer").wait_for(state="attached")
    page.keyboard.press("h")
    page.locator("img.wsi-layer").wait_for(state="detached")
    page.get_by_test_id("layers").click()
    page.get_by_test_id("layer-mask").check()
    page.locator("img.wsi-layer").wait_for(state="attached")
    page.get_by_text("empty glass").wait_for()
    with page.expect_response(lambda answer: answer.url.endswith("/glass.png") and answer.status == 200):
        page.get_by_test_id("layer-glass").check()
    page.wait_for_function("document.querySelectorAll('img.wsi-layer').length === 2")
    lies = on_map(
        page,
        """Object.values(map._layers).filter(l => l._url && l._url.endsWith('glass.png'))
        .flatMap(l => [l.getBounds().getWest(), l.getBounds().getSouth(), l.getBounds().getEast()])""",
    )
    report = json.loads((serving.root / "layers" / "report.json").read_text(encoding="utf-8"))
    assert lies[:2] == [0, 0]
    assert report["slide"]["width"] <= lies[2] < report["slide"]["width"] + 64


# ------------------------------------------------------------------------------------------------ asking


def test_a_drawn_rectangle_is_asked_about_and_what_was_shown_stands_beside(
    context: BrowserContext, serving: Serving
) -> None:
    page = open_page(context, serving, "ask")
    page.keyboard.press("q")
    page.get_by_text("Drag a rectangle.").wait_for()
    area = page.get_by_test_id("map").bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 200, area["y"] + 300)
    page.mouse.down()
    page.mouse.move(area["x"] + 260, area["y"] + 350, steps=6)
    page.mouse.up()
    page.locator("[data-testid=scope-region][aria-checked=true]").wait_for()
    drawn = on_map(
        page,
        "[map.containerPointToLatLng([200, 300]), map.containerPointToLatLng([260, 350])].map(p => [p.lng, p.lat])",
    )
    page.locator("textarea").fill("What is in this region?")
    page.keyboard.press("Enter")
    reply = page.get_by_test_id("reply").last
    reply.get_by_text("from the model").wait_for()
    assert "hsil" in reply.locator(".text").first.inner_text()
    source = reply.get_by_test_id("shown").get_attribute("src") or ""
    x0, y0, x1, y1 = (float(v) for v in source.split("box=")[1].split("&")[0].split(","))
    assert x0 <= drawn[0][0] < drawn[1][0] <= x1
    assert y0 <= drawn[0][1] < drawn[1][1] <= y1
    assert reply.get_by_test_id("shown").evaluate("image => image.complete && image.naturalWidth > 100")
    # an answer of the record cites what one can fly to
    page.get_by_test_id("scope-slide").click()
    page.locator("textarea").fill("why?")
    page.keyboard.press("Enter")
    page.locator("[data-testid=reply][data-source=record]").wait_for()
    cite = page.get_by_test_id("reply").last.locator(".wsi-cites [data-cite]").first
    name = cite.inner_text()
    cite.click()
    page.get_by_test_id("chosen").get_by_text(name).wait_for()


def test_an_answer_streams_can_be_stopped_and_is_there_after_a_reload(
    context: BrowserContext, serving: Serving
) -> None:
    page = open_page(context, serving, "stop")
    page.get_by_test_id("scope-view").click()
    page.locator("textarea").fill("Were any abnormal cells found during the examination?")
    page.get_by_test_id("ask").click()
    writing = page.locator(".wsi-writing")
    page.wait_for_function("document.querySelector('.wsi-writing')?.innerText.split(' ').length > 5")
    first = writing.inner_text()
    page.wait_for_timeout(300)
    assert len(writing.inner_text()) > len(first)  # it goes on
    page.get_by_test_id("stop").click()
    reply = page.get_by_test_id("reply").last
    reply.get_by_text("stopped before its end").wait_for()
    said = reply.locator(".text").first.inner_text()
    assert 5 < len(said.split()) < 500
    page.reload()
    page.get_by_test_id("reply").last.get_by_text("stopped before its end").wait_for()
    assert page.get_by_test_id("reply").last.locator(".text").first.inner_text() == said
    saved = json.loads((serving.root / "stop" / "chat.json").read_text(encoding="utf-8"))
    assert saved["replies"][-1]["status"] == "truncated"


# ------------------------------------------------------------------------------------------------ reviewing


def test_reject_undo_and_relabel_by_keyboard_are_kept(context: BrowserContext, serving: Serving) -> None:
    page = open_page(context, serving, "decide")
    page.keyboard.press("n")
    page.keyboard.press("r")  # nobody has said who reads
    page.locator("[data-testid=reviewer-name]").fill("Ann Lee")
    page.keyboard.press("Enter")
    wait_progress(page, 1)
    row = page.get_by_test_id("findings").locator("tr.chosen")
    assert row.get_by_text("✕").is_visible()
    page.keyboard.press("u")
    wait_progress(page, 0)
    chosen = str(row.get_attribute("data-id"))
    page.keyboard.press("l")
    option = page.locator(".wsi-pick [data-class=agc]")
    key = option.locator("kbd").inner_text()
    page.keyboard.press(key)
    wait_progress(page, 1)
    page.get_by_test_id("chosen").get_by_text("relabelled").wait_for()
    page.keyboard.press("n")
    page.keyboard.press("a")
    wait_progress(page, 2)
    page.reload()
    wait_progress(page, 2)
    page.get_by_test_id("reviewer").get_by_text("Ann Lee").wait_for()
    page.get_by_test_id("findings").locator(f"tr[data-id={chosen}]").click()
    page.get_by_test_id("chosen").get_by_text("Model: HSIL").wait_for()
    assert "AGC" in page.get_by_test_id("chosen").inner_text()


def test_a_missed_cell_is_drawn_by_keys_alone_and_undone(context: BrowserContext, serving: Serving) -> None:
    page = open_page(context, serving, "draw", reviewer="Ann")
    rows = page.get_by_test_id("findings").locator("tbody tr[data-id]")
    before = rows.count()
    page.keyboard.press("2")
    page.wait_for_timeout(400)
    page.keyboard.press("d")
    page.get_by_text("Drag a rectangle.").wait_for()
    center = on_map(page, "[map.getCenter().lng, map.getCenter().lat]")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    page.locator(".wsi-pick [data-class=hsil]").click()
    page.get_by_test_id("chosen").get_by_text("r0001").wait_for()
    page.wait_for_function(
        "n => document.querySelectorAll('[data-testid=findings] tbody tr[data-id]').length === n", arg=before + 1
    )
    from wsi_chat.app.review import ReviewStore

    with ReviewStore(serving.root / "draw") as store:
        box = store.drawn()["r0001"].box
    assert box is not None
    assert box.center[0] == pytest.approx(center[0] + 24, abs=1)  # three steps of 8 px at 20x
    assert (box.width, box.height) == (pytest.approx(72, abs=1), pytest.approx(80, abs=1))
    page.keyboard.press("u")
    page.wait_for_function(
        "n => document.querySelectorAll('[data-testid=findings] tbody tr[data-id]').length === n", arg=before
    )
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    page.locator(".wsi-hint").wait_for(state="detached")


def test_two_readers_do_not_see_each_other_and_their_agreement_is_told(
    context: BrowserContext, serving: Serving
) -> None:
    page = open_page(context, serving, "two", reviewer="Ann")
    for n, key in enumerate("aaar", start=1):
        page.keyboard.press("n")
        page.keyboard.press(key)
        wait_progress(page, n)
    page.get_by_test_id("reviewer").click()
    page.locator("[data-testid=reviewer-name]").fill("Bob")
    page.get_by_test_id("save-name").click()
    page.get_by_test_id("reviewer").get_by_text("Bob").wait_for()
    wait_progress(page, 0)
    assert page.get_by_test_id("findings").get_by_text("✓").count() == 0
    page.get_by_test_id("findings").locator("tbody tr[data-id]").first.click()
    for n, key in enumerate("aarr", start=1):
        page.keyboard.press(key)
        wait_progress(page, n)
        page.keyboard.press("n")
    page.get_by_test_id("agreement").click()
    window = page.get_by_test_id("agreement-window")
    window.get_by_text("Ann and Bob both decided 4 findings and gave 3 of them the same class.").wait_for()
    assert re.search(r"kappa 0\.\d\d", window.inner_text())
    assert window.locator(".cite").count() == 1


def test_the_export_is_written_into_the_slides_folder(context: BrowserContext, serving: Serving) -> None:
    page = open_page(context, serving, "export", reviewer="Ann")
    page.keyboard.press("n")
    page.keyboard.press("a")
    wait_progress(page, 1)
    page.keyboard.press("c")
    page.get_by_text("every cell in it is marked").wait_for()
    page.get_by_test_id("slide-class").select_option(label="HSIL")
    page.get_by_test_id("export").click()
    page.get_by_text("Written to").wait_for()
    folder = serving.root / "export" / "review"
    with (folder / "findings.csv").open(encoding="utf-8", newline="") as file:
        assert [row["reviewed"] for row in csv.DictReader(file)].count("accepted") == 1
    assert json.loads((folder / "findings.geojson").read_text(encoding="utf-8"))["type"] == "FeatureCollection"
    lines = (folder / "dataset" / "reviewed_train.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["messages"][0]["content"].startswith("<image>")
    page.goto(serving.url)
    page.get_by_test_id("manifest").click()
    page.get_by_text("Written to").wait_for()
    assert "export" in (serving.root / "reviewed.csv").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ safe and reachable


def test_names_and_answers_are_text_whatever_they_hold(context: BrowserContext, serving: Serving) -> None:
    page = open_page(context, serving, "attack", reviewer="Ann")
    assert page.locator("h1").inner_text() == NAME
    page.keyboard.press("n")
    page.get_by_test_id("chosen").get_by_text("<b onmouseover").wait_for()
    page.mouse.move(600, 400)
    page.get_by_test_id("scope-view").click()
    page.locator("textarea").fill("describe <img src=x onerror='window.attacked=1'>")
    page.keyboard.press("Enter")
    page.get_by_test_id("reply").last.get_by_text("from the").wait_for()
    page.locator("textarea").fill("Describe the Cytology diagnosis results.")
    page.keyboard.press("Enter")
    page.get_by_text("[x](javascript:alert(1))").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    assert page.evaluate("window.attacked") is None
    assert page.locator("img[src=x], .wsi-page script, b[onmouseover]").count() == 0


@pytest.mark.parametrize(
    "path",
    ["/slides/look/files/journal.sqlite", "/slides/look/files/review.sqlite", "/slides/..%2f..%2fetc/files/report.json",
     "/slides/look/label.jpg", "/slides/look/macro.jpg", "/s/../../etc/passwd", "/s/nowhere", "/etc/passwd"],
)  # fmt: skip
def test_outside_of_the_run_folder_there_is_nothing(serving: Serving, path: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{serving.port}{path}", timeout=10)
    assert refused.value.code == 404
    assert b"root:" not in refused.value.read()


def test_other_hosts_and_origins_are_refused(serving: Serving) -> None:
    for headers, code in (({"Host": "evil.example"}, 421), ({"Origin": "http://evil.example"}, 403)):
        request = urllib.request.Request(serving.url, headers=headers)
        with pytest.raises(HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert refused.value.code == code


def test_elsewhere_the_token_is_needed(browser: Browser, serving: Serving) -> None:
    process, place = start(serving.root / "again", "--host", "0.0.0.0")
    try:
        base = f"http://127.0.0.1:{place['port']}"
        made = browser.new_context()
        made.set_default_timeout(15_000)
        page = made.new_page()
        refused = page.goto(f"{base}/?token=guess")
        assert refused is not None
        assert refused.status == 403
        assert "wsi-chat view printed" in page.content()
        page.goto(f"{base}/?token={place['token']}")
        page.locator(".leaflet-tile-loaded").first.wait_for()
        assert "token" not in page.url
        page.keyboard.press("n")  # the web socket is let in too
        page.locator(".wsi-list tr.chosen").wait_for()
        made.close()
    finally:
        process.terminate()
        process.wait(10)


AUDIT = """() => {
  const shown = (e) => e.checkVisibility() && !e.closest('[aria-hidden=true]');
  const named = (e) => e.getAttribute('aria-label') || e.innerText?.trim() || e.title || e.alt || e.placeholder
    || (e.labels?.length && e.labels[0].innerText.trim());
  const all = [...document.querySelectorAll('a, button, input, select, textarea, img, [role=button], [tabindex="0"]')];
  return all.filter((e) => shown(e) && !named(e) && e.alt !== '' && !e.closest('.leaflet-pane'))
    .map((e) => e.outerHTML.slice(0, 120));
}"""


def test_every_control_has_a_name_and_the_keyboard_gets_there(context: BrowserContext, serving: Serving) -> None:
    page = open_page(context, serving, "reach")
    assert page.evaluate(AUDIT) == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the findings"
    seen = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.dataset.testid || document.activeElement.id || ''"))
    wanted = {"layers", "keys", "language", "theme", "threshold", "sort", "map", "accept", "reject", "relabel", "draw",
              "complete", "undo", "reviewer", "agreement", "slide-class", "export", "scope-slide", "ask"}  # fmt: skip
    assert wanted <= seen
    page.keyboard.press("?")
    page.get_by_text("Closer and farther").wait_for()
    page.keyboard.press("Escape")


def test_dark_and_chinese_are_remembered(context: BrowserContext, serving: Serving) -> None:
    page = open_page(context, serving, "theme")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_test_id("theme").click()
    page.wait_for_function("document.body.classList.contains('body--dark')")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.get_by_test_id("language").select_option("zh")
    page.get_by_role("heading", name="所见").first.wait_for()
    page.wait_for_function("document.body.classList.contains('body--dark')")
    assert page.evaluate("document.documentElement.lang").startswith("zh")
    page.reload()
    page.get_by_role("heading", name="对话").wait_for()


def test_many_slides_are_sorted_and_opened(context: BrowserContext, serving: Serving) -> None:
    page = context.new_page()
    page.goto(serving.url)
    links = page.get_by_test_id("cohort").locator("tbody a")
    links.first.wait_for()
    assert links.count() == len(SLIDES)
    scores = [float(text) for text in page.locator("tbody td:nth-child(4)").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    page.locator("th", has_text="Score").click()
    page.wait_for_function("document.querySelector('tbody td:nth-child(4)').innerText === '0.100'")
    page.get_by_label("Filter").fill("choose")
    page.wait_for_function("document.querySelectorAll('[data-testid=cohort] tbody a').length === 1")
    links.first.click()
    page.locator(".leaflet-tile-loaded").first.wait_for()
    assert page.url.endswith("/s/choose")
    page.get_by_label("All slides").click()
    links.first.wait_for()


def test_fields_of_a_specimen_are_a_strip(browser: Browser, photographs: Path, tmp_path: Path) -> None:
    process, place = start(photographs, "--out", str(tmp_path / "out"))
    try:
        page = browser.new_page(reduced_motion="reduce")
        page.set_default_timeout(15_000)
        page.goto(place["url"])
        page.locator(".leaflet-tile-loaded").first.wait_for()
        assert page.get_by_text("Not analyzed").first.is_visible()
        strip = page.get_by_test_id("film").locator("button")
        assert strip.count() == 3
        strip.nth(1).click()
        page.wait_for_timeout(800)
        with open_slide(photographs) as slide:
            box = slide.fields[1].box
        center = on_map(page, "[map.getCenter().lng, map.getCenter().lat]")
        assert center == pytest.approx(box.center, abs=2)
        page.close()
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """An OME-TIFF of three focal planes, each of a colour of its own; the second is the sharpest."""
    cells = np.zeros((512, 512), np.int16)
    cells[64:448:32, 64:448:32] = 1
    planes = []
    for colour, depth in (((230, 180, 180), 8), ((180, 230, 180), 120), ((180, 180, 230), 8)):
        planes.append((np.asarray(colour) - depth * cells[..., None]).astype(np.uint8))
    metadata = {"axes": "ZYXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5,
                "PhysicalSizeYUnit": "µm"}  # fmt: skip
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, np.stack(planes), photometric="rgb", tile=(128, 128), metadata=metadata)
    return path


SHOWN = """async () => {
  const all = [...document.querySelectorAll('img.leaflet-tile-loaded')];
  const sees = (image) => {
    const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
    canvas.getContext('2d').drawImage(image, 10, 10, 1, 1, 0, 0, 1, 1);
    return [...canvas.getContext('2d').getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  return all.map((image) => sees(image).map((value) => value > 205));
}"""


def test_the_slider_and_the_keys_go_through_a_focal_stack(browser: Browser, stack: Path, tmp_path: Path) -> None:
    process, place = start(stack, "--out", str(tmp_path / "out"))
    try:
        page = browser.new_page(reduced_motion="reduce")
        page.set_default_timeout(15_000)
        page.goto(place["url"])
        page.locator(".leaflet-tile-loaded").first.wait_for()
        slider, planes = page.get_by_test_id("plane"), page.locator(".wsi-planes")
        assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("-1", "2")

        def shows(said: str, number: int) -> None:
            """The label, and that every square has the colour of this plane: red, green or blue is its strongest."""
            planes.get_by_text(said).wait_for()
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(400)
            seen = page.evaluate(SHOWN)
            assert seen
            assert all(pixel == [n == number for n in range(3)] for pixel in seen), said

        shows("sharpest", 1)
        with page.expect_response(lambda answer: "plane=2" in answer.url and answer.status == 200):
            slider.fill("2")
        shows("3/3", 2)
        page.keyboard.press("]")  # there is no fourth
        shows("3/3", 2)
        for key, said, number in (("[", "2/3", 1), ("[", "1/3", 0), ("[", "sharpest", 1), ("[", "sharpest", 1)):
            page.keyboard.press(key)
            shows(said, number)
        page.close()
    finally:
        process.terminate()
        process.wait(10)
