"""The page in a real Chromium: the review by keyboard, two readers, the export. Run by ``make test-page``."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING

import pytest

from .browsing import (
    IN_A_BROWSER,
    Serving,
    on_map,
    open_page,
    wait_progress,
)

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

pytestmark = IN_A_BROWSER


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
