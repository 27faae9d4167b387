"""The page in a real Chromium: looking at a slide and asking about it. Run by ``make test-page``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from .browsing import (
    IN_A_BROWSER,
    Serving,
    on_map,
    open_page,
    power,
)

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

pytestmark = IN_A_BROWSER


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
