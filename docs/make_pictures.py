"""Draw the README's pictures anew: page one of the reports that `make demo` wrote, as PNG.

make demo
.venv/bin/python -m pip install pypdfium2
.venv/bin/python docs/make_pictures.py
"""

from __future__ import annotations

import argparse
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


def main() -> int:
    """Draw each picture whose report is there; 1 where one is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=DEMO, help="what make demo wrote")
    parser.add_argument("--out", type=Path, default=DOCS, help="where the pictures go")
    given = parser.parse_args()
    missing = 0
    for run, name in PICTURES.items():
        reports = sorted((given.demo / run).glob("*/report.pdf"))
        if not reports:
            print(f"{given.demo / run} has no report.pdf: run make demo first", file=sys.stderr)
            missing += 1
            continue
        print(draw_first_page(reports[0], given.out / name))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
