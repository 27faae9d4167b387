"""What the mask leaves out: tiles with a white cell of real fields, tiles with an abnormal cell of rendered slides.

    python benchmarks/mask.py ../shared/data/bccd --slides 6

For every BCCD field, at 0.15 and 0.075 µm/px, and for rendered slides: tiles of the grid, tiles that are screened with
the mask on, and among those left out the ones that hold the centre of an annotated white cell, or of an abnormal cell.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path

from tilers import find_foreground, open_slide, plan_tiles
from tilers.plan import TilePlan
from tilers.slide import Slide
from wsi_chat.datasets.render.slide import render_slide

Point = tuple[float, float]
ABNORMAL = {"ascus", "lsil", "asch", "hsil", "scc", "agc"}
RECIPES = ("abnormal", "sparse", "hsil", "agc", "lsil", "ascus")


def white_cells(file: Path) -> Iterator[Point]:
    """Centres of the annotated white cells of a VOC file."""
    for cell in ET.parse(file).getroot().iter("object"):
        if cell.findtext("name") == "WBC":
            x0, y0, x1, y1 = (float(cell.findtext(f"bndbox/{name}", "0")) for name in ("xmin", "ymin", "xmax", "ymax"))
            yield (x0 + x1) / 2, (y0 + y1) / 2


def plans(slide: Slide, mpp: float) -> tuple[TilePlan, TilePlan]:
    """The tiles with the mask, and all of them."""
    masked, whole = find_foreground(slide), find_foreground(slide, mask=False)
    return tuple(plan_tiles(slide, ground, tile_px=256, mpp=mpp, allow_upsample=True) for ground in (masked, whole))


def lost(masked: TilePlan, whole: TilePlan, cells: Iterable[Point]) -> int:
    """Tiles left out that hold the centre of a cell."""
    kept = {tile.index for tile in masked.tiles}
    out = [tile.box for tile in whole.tiles if tile.index not in kept]
    return sum(any(b.x0 <= x <= b.x1 and b.y0 <= y <= b.y1 for x, y in cells) for b in out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("--slides", type=int, default=6)
    parser.add_argument("--side", type=int, default=3072)
    given = parser.parse_args()
    pictures = sorted((given.bccd / "JPEGImages").glob("*.jpg"))
    for mpp in (0.15, 0.075):
        tiles = kept = missed = 0
        for picture in pictures:
            with open_slide(picture, mpp=mpp) as slide:
                masked, whole = plans(slide, 0.15)
            cells = list(white_cells(given.bccd / "Annotations" / f"{picture.stem}.xml"))
            tiles, kept, missed = tiles + whole.grid, kept + len(masked), missed + lost(masked, whole, cells)
        print(
            f"BCCD at {mpp} µm/px: {len(pictures)} fields, {kept} of {tiles} tiles, {missed} left out with a white cell"
        )
    tiles = kept = missed = found = 0
    with tempfile.TemporaryDirectory() as folder:
        for n in range(given.slides):
            path = Path(folder) / f"{n}.tiff"
            side, recipe = given.side, RECIPES[n % len(RECIPES)]
            render_slide(path, seed=940_000_000 + n, width_px=side, height_px=side, mpp=0.5, recipe=recipe)
            truth = json.loads(path.with_name(f"{n}.truth.json").read_text(encoding="utf-8"))
            boxes = [cell["box"] for cell in truth["cells"] if cell["label"] in ABNORMAL]
            cells = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
            with open_slide(path) as slide:
                masked, whole = plans(slide, 0.5)
            tiles, kept, found = tiles + whole.grid, kept + len(masked), found + len(cells)
            missed += lost(masked, whole, cells)
            path.unlink()
    print(
        f"rendered: {given.slides} slides, {kept} of {tiles} tiles, {found} abnormal cells,"
        f" {missed} tiles left out with one"
    )


if __name__ == "__main__":
    main()
