"""In a notebook: the page in a frame, its end, and what slides, plans, verdicts and findings show of themselves."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import wsi_chat
from tilers import find_foreground, open_slide, plan_tiles
from wsi_chat.analysis.result import SlideResult
from wsi_chat.errors import OutputError
from wsi_chat.schema import Box, Finding


def test_a_result_is_viewed_in_a_frame_until_it_is_closed(result: SlideResult) -> None:
    with wsi_chat.view(result) as page:
        shown = page._repr_html_()
        assert f'src="{page.url}"' in shown
        with urllib.request.urlopen(page.url, timeout=60) as answer:
            assert answer.url.endswith(f"/s/{result.folder.name}")
            assert "frame-ancestors 'self' http://127.0.0.1:*" in answer.headers["Content-Security-Policy"]
        assert page.running
    assert not page.running
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page.url, timeout=5)
    assert "closed" in repr(page)
    assert "<iframe" not in page._repr_html_()


def test_the_page_ends_with_the_process_that_started_it(result: SlideResult) -> None:
    page = wsi_chat.view(result.folder)
    assert page._process.stdin is not None
    page._process.stdin.close()  # as the end of a killed kernel does
    for _ in range(100):
        if not page.running:
            break
        time.sleep(0.1)
    assert not page.running
    page.close()


def test_what_cannot_be_viewed_says_why(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"There is no .*nowhere"):
        wsi_chat.view(tmp_path / "nowhere")


def test_slides_and_plans_show_themselves(small_slide: Path) -> None:
    with open_slide(small_slide) as slide:
        card = slide._repr_html_()
        assert "1,536 × 1,024 px" in card
        assert "0.5 µm/px" in card
        assert "0.77 × 0.51 mm" in card
        assert "data:image/png" in card
        plan = plan_tiles(slide, find_foreground(slide), tile_px=256, mpp=0.5)
        shown = plan._repr_html_()
    assert f"{plan.selected:,} selected" in shown
    assert "data:image/png" in shown


def test_verdicts_and_findings_show_themselves(result: SlideResult) -> None:
    verdict = result.report.verdict._repr_html_()
    assert "SlideVerdict" in verdict
    assert "abnormal" in verdict
    assert f"{len(result.findings)} × Finding" in verdict
    assert "level-0 px" in result.findings[0]._repr_html_()


def test_what_shows_itself_is_escaped() -> None:
    finding = Finding(
        id="f0001", label="hsil", name="<script>x</script>", box=Box(0, 0, 1, 1), abnormal=True, tile_ids=("t000001",),
        votes=1,
    )  # fmt: skip
    shown = finding._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
