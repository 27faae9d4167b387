"""Draw the README's pictures anew: page one of the reports that `make demo` wrote, as PNG; with --page, the page too.

make demo
.venv/bin/python -m pip install pypdfium2 playwright
.venv/bin/python docs/make_pictures.py --page       # --page needs Debian's chromium
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
DEMO = DOCS.parent / "runs" / "demo"
WIDTH_PX = 1100
# folder of the run under runs/demo -> picture
PICTURES = {"blood": "blood-report.png", "cervix": "report-page.png"}


def draw_first_page(pdf: Path, picture: Path, *, width: int = WIDTH_PX) -> Path:
    """Page one of a PDF as a PNG with 256 colours, ``width`` pixels wide."""
    import pypdfium2
    from PIL import Image

    page = pypdfium2.PdfDocument(pdf)[0]
    drawn = page.render(scale=2 * width / page.get_width()).to_pil().convert("RGB")
    small = drawn.resize((width, round(drawn.height * width / drawn.width)), Image.Resampling.LANCZOS)
    small.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(picture, optimize=True)
    return picture


def draw_page(run: Path, out: Path) -> list[Path]:
    """The page of a run in a headless Chromium, light (page.jpg) and dark with its layers (page-dark.jpg)."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "wsi_chat", "view", str(run), "--no-browser", "--json", "--port", "0"]
    drawn = [out / "page.jpg", out / "page-dark.jpg"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
        try:
            page.add_init_script("localStorage.setItem('wsi-chat-reviewer', 'Ann Lee')")
            page.goto(f"{url}s/{next(run.glob('*/report.json')).parent.name}")
            page.locator(".leaflet-tile-loaded").first.wait_for()
            page.get_by_test_id("reviewer").get_by_text("Ann Lee").wait_for()
            for question in ("Why is the verdict what it is?", "How many cells of each class were found?"):
                count = page.get_by_test_id("reply").count()
                page.locator("textarea").fill(question)
                page.keyboard.press("Enter")
                page.wait_for_function(f"document.querySelectorAll('[data-testid=reply]').length > {count}")
            page.get_by_test_id("findings").locator("tbody tr[data-id]").nth(4).click()
            page.keyboard.press("2")  # 20x
            page.wait_for_timeout(2000)
            page.screenshot(path=drawn[0], type="jpeg", quality=88)
            page.get_by_test_id("theme").click()
            page.keyboard.press("1")
            page.keyboard.press("h")
            page.get_by_test_id("layers").click()
            page.wait_for_timeout(2000)
            page.screenshot(path=drawn[1], type="jpeg", quality=88)
        finally:
            browser.close()
            server.terminate()
    return drawn


def main() -> int:
    """Draw each picture whose report is there; 1 where one is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=DEMO, help="what make demo wrote")
    parser.add_argument("--out", type=Path, default=DOCS, help="where the pictures go")
    parser.add_argument("--page", action="store_true", help="the page in Chromium, too")
    given = parser.parse_args()
    missing = 0
    for run, name in PICTURES.items():
        reports = sorted((given.demo / run).glob("*/report.pdf"))
        if not reports:
            print(f"{given.demo / run} has no report.pdf: run make demo first", file=sys.stderr)
            missing += 1
            continue
        print(draw_first_page(reports[0], given.out / name))
    if given.page and not missing:
        print(*draw_page(given.demo / "cervix", given.out), sep="\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
