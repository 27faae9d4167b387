"""The page in a real Chromium: what it gives away, who can use it, kinds of slides. Run by ``make test-page``."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError

import numpy as np
import pytest
import tifffile

from tilers import open_slide

from .browsing import (
    IN_A_BROWSER,
    NAME,
    SLIDES,
    Serving,
    on_map,
    open_page,
    start,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

pytestmark = IN_A_BROWSER


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
