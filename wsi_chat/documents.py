"""Everything that the run folder holds for one slide, written in one place and in one order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_chat.cascade import Progress, no_progress
from wsi_chat.errors import SlideUnreadable
from wsi_chat.schema import Box, Report, TileVerdict
from wsi_chat.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tilers import Foreground, Slide, TilePlan
    from wsi_chat.terminology import System

log = logging.getLogger(__name__)


def write_documents(
    report: Report,
    tile_verdicts: list[TileVerdict],
    *,
    slide: Slide,
    plan: TilePlan,
    foreground: Foreground,
    system: System,
    folder: Path,
    settings: Settings,
    progress: Progress = no_progress,
) -> None:
    """Write everything that the run folder holds for one slide; report.json is the last, so it marks completion."""
    import reports

    overview = slide.overview()
    outline = [foreground.deposit.ring] if foreground.deposit else []
    colors = {label.code: label.color for label in system.labels}
    topic = system.screen.topic
    tiles = tile_verdicts
    steps: list[Callable[[], object]] = [
        lambda: reports.write_geojson(report, tiles, folder / "findings.geojson", colors=colors),
        lambda: reports.write_tiles_parquet(tiles, folder / "tiles.parquet"),
        lambda: reports.write_maps_zarr(plan, tiles, folder / "maps.zarr", slide=report.slide),
        lambda: reports.draw_overview(overview, report, tiles, folder / "overview.png", outline=outline),
        lambda: reports.draw_heatmap(overview, report, tiles, folder / "heatmap.png", outline=outline, question=topic),
        lambda: _draw_gallery(slide, report, tiles, folder, limit=settings.gallery),
    ]
    if settings.pdf:
        fonts = (settings.font_path,) if settings.font_path else ()
        steps.append(
            lambda: reports.write_pdf(report, tiles, folder=folder, path=folder / "report.pdf", font_paths=fonts)
        )
    steps.append(lambda: reports.write_report_json(report, folder / "report.json"))
    for done, step in enumerate(steps):
        progress("documents", done, len(steps))
        step()
    progress("documents", len(steps), len(steps))


def _draw_gallery(slide: Slide, report: Report, tile_verdicts: list[TileVerdict], folder: Path, *, limit: int) -> None:
    """Crops of the cells that carry the verdict; an unreadable one leaves a marked empty frame in the PDF."""
    import reports

    def read(box: Box, px: int) -> NDArray[np.uint8] | None:
        try:
            return slide.crop(box, px)
        except SlideUnreadable as error:
            log.warning("gallery: %s", error)
            return None

    reports.draw_gallery(read, report, folder, limit=limit, tile_verdicts=tile_verdicts)
