"""Everything that the run folder holds for one slide, written in one place and in one order.

`write_documents` writes all of it at the end of a run, `rebuild_documents` the readable ones again from what the
folder stores. A document that cannot be made never takes the others with it: it is named, with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.atomic import sweep
from wsi_chat.errors import SettingError, SlideUnreadable, WsiChatError
from wsi_chat.schema import Box, Remark, Report, TileVerdict
from wsi_chat.settings import FORMATS, Format, Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reports import FontMissing, Words
    from tilers import Slide
    from wsi_chat.analysis.run_folder import SlideFolder
    from wsi_chat.analysis.stages import Judged

log = logging.getLogger(__name__)

Step = Callable[[], object]


NO_FONT = "no font has Chinese characters; install one (pip install 'wsi-chat[cjk]') or name one as font_path."


@dataclass(frozen=True, slots=True)
class Unwritten:
    """What of one slide could not be written, a line each: ``lines`` of documents that were asked for, or that every
    install writes; ``notes`` of those that nobody asked for and an extra would write."""

    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def missing_font(settings: Settings) -> Remark | None:
    """Why report.pdf cannot be written in the settings' language; None where it can."""
    error = _font_missing(settings)
    return Remark("run.no_pdf", why=error.message) if error else None


def tell_missing_font(settings: Settings) -> None:
    """Say, as an error, that no report.pdf of a run can be written for want of a font, and the way out.

    To be called once, before the first slide, so that the run goes on knowingly: all but the PDF is still written.
    """
    error = _font_missing(settings)
    if error:
        log.error("%s %s", error.message, error.hint)


def _font_missing(settings: Settings) -> FontMissing | None:
    from reports import FontMissing, chinese_font

    if settings.language != "zh" or "pdf" not in settings.format:
        return None
    try:
        chinese_font(settings.font_path)
    except FontMissing as error:
        return error
    return None


def write_documents(judged: Judged) -> Unwritten:
    """Write everything that the run folder holds for one slide; report.json is the last, so it marks completion.

    Returns:
        What could not be written.
    """
    import reports

    run, report, tiles = judged.run, judged.report, judged.tile_verdicts
    prepared, settings, folder = run.prepared, run.settings, run.folder
    slide, font_path = prepared.slide, settings.font_path
    words = reports.Words(report.language, prepared.system)
    outline = [prepared.foreground.deposit.ring] if prepared.foreground.deposit else []
    colors = {label.code: label.color for label in prepared.system.labels}
    unwritten = Unwritten()
    steps: list[Step] = [
        lambda: reports.write_geojson(report, tiles, folder.findings_path, colors=colors),
        lambda: reports.write_tiles_geojson(report, tiles, folder.path / "tiles.geojson"),
        lambda: reports.write_geojson_by_field(report, tiles, folder.path / "fields", colors=colors),
        lambda: reports.write_findings_csv(report, folder.path / "findings.csv"),
        lambda: reports.write_fields_csv(report, tiles, folder.path / "fields.csv"),
        lambda: reports.write_differential_csv(report, folder.path / "differential.csv"),
        lambda: reports.write_tiles_parquet(tiles, folder.tiles_path, fields=report.slide.fields),
        lambda: reports.write_maps_zarr(prepared.plan, tiles, folder.maps_path, slide=report.slide, outline=outline),
        lambda: reports.write_mask(prepared.foreground, folder.path / reports.MASK),
        lambda: reports.write_scan(slide.overview(), folder.path),
        lambda: draw_pictures(report, tiles, folder, words=words, outline=outline, font_path=font_path),
        lambda: _draw_gallery(slide, report, tiles, folder.path, limit=settings.gallery),
    ]
    dicom = is_dicom(slide.path.name)
    formats = [name for name in settings.format if name != "json" and (name != "dicom" or dicom)]
    writers = document_steps(report, tiles, folder, words=words, font_path=font_path, slide_path=slide.path)
    asked = "format" in settings.model_fields_set
    steps += [_apart(name, writers[name], unwritten, asked=asked) for name in formats]
    steps.append(writers["json"])
    for done, step in enumerate(steps):
        run.progress("documents", done, len(steps))
        step()
    run.progress("documents", len(steps), len(steps))
    run.clock.lap("documents")
    return unwritten


def is_dicom(file_name: str) -> bool:
    """Whether a slide is DICOM, by its name."""
    return file_name.lower().endswith((".dcm", ".dicom"))


def document_steps(
    report: Report,
    tile_verdicts: list[TileVerdict],
    folder: SlideFolder,
    *,
    words: Words,
    font_path: str | None = None,
    slide_path: Path | None = None,
) -> dict[Format, Step]:
    """How each readable document is written, from the report and from what the folder holds."""
    import reports

    fonts = (font_path,) if font_path else ()

    def pdf() -> Path:
        try:
            return reports.write_pdf(
                report, tile_verdicts, folder=folder.path, path=folder.pdf_path, font_paths=fonts, words=words
            )
        except reports.FontMissing:
            folder.pdf_path.unlink(missing_ok=True)  # one in another language would pass for this one
            raise

    def dicom() -> object:
        from reports.dicom import write_dicom

        if slide_path is None:
            raise SettingError("the slide's DICOM file is not at hand.", hint="Name it with --slide.")
        return write_dicom(report, folder.path, source=slide_path)

    return {
        "pdf": pdf,
        "html": lambda: reports.write_html(
            report, tile_verdicts, folder=folder.path, path=folder.html_path, words=words
        ),
        "json": lambda: reports.write_report_json(report, folder.report_path),
        "dicom": dicom,
    }


def _apart(name: Format, step: Step, unwritten: Unwritten, *, asked: bool) -> Step:
    """The same step; a document that has no font, no library or no source of its own does not stop the others.

    Args:
        asked: the user named the formats; what the default alone wants, and the base install lacks, is a note.
    """
    from reports import FontMissing
    from reports.dicom import DicomUnavailable, HighdicomMissing

    def run() -> None:
        try:
            step()
        except FontMissing:  # `tell_missing_font` has said where it looked, and every way out
            unwritten.lines.append(f"{name}: {NO_FONT}")
        except DicomUnavailable as error:
            if isinstance(error, HighdicomMissing) and not asked:
                log.info("%s: %s", name, error)
                unwritten.notes.append(str(error))
                return
            log.error("%s: %s", name, error)
            unwritten.lines.append(f"{name}: {error.message}")

    return run


def rebuild_documents(
    report: Report,
    tile_verdicts: list[TileVerdict],
    folder: SlideFolder,
    *,
    formats: Collection[Format],
    words: Words,
    redraw: bool,
    font_path: str | None = None,
    slide_path: Path | None = None,
) -> tuple[list[Path], list[str]]:
    """Write documents again from a run folder; no model and, but for DICOM, no slide is needed.

    Args:
        redraw: draw overview.png and heatmap.png anew, because their words change.

    Returns:
        The files written, and a line for each thing that could not be.
    """
    from reports import read_outline, read_scan

    written: list[Path] = []
    failed: list[str] = []
    sweep(folder.path)
    if redraw and read_scan(folder.path) is not None:
        outline = read_outline(folder.maps_path)
        draw_pictures(report, tile_verdicts, folder, words=words, outline=outline, font_path=font_path)
    elif redraw:
        failed.append(
            "overview.png, heatmap.png: their legends keep the earlier language (the folder stores no scan.jpg)."
        )
    steps = document_steps(report, tile_verdicts, folder, words=words, font_path=font_path, slide_path=slide_path)
    for name in FORMATS:
        if name not in formats or name == "json":
            continue
        try:
            made: Any = steps[name]()
        except WsiChatError as error:
            failed.append(f"{name}: {error}")
            continue
        written += made if isinstance(made, list) else [made]
    if "json" in formats:  # the last, as in a run: it says what the others hold
        steps["json"]()
        written.append(folder.report_path)
    return written, failed


def draw_pictures(
    report: Report,
    tile_verdicts: list[TileVerdict],
    folder: SlideFolder,
    *,
    words: Words,
    outline: list[list[tuple[float, float]]] | list[Any],
    font_path: str | None = None,
) -> None:
    """Draw overview.png and heatmap.png over the stored scan; in English where no font has Chinese."""
    import reports

    scan = reports.read_scan(folder.path)
    if scan is None:
        raise SlideUnreadable(f"{folder.path / 'scan.jpg'} cannot be read back.", hint="Run the analysis again.")
    font = None
    if words.language == "zh":
        try:
            font = reports.chinese_font(font_path)
        except reports.FontMissing:
            words = reports.Words("en", words.system)
    topic = words.system.screen.topic if words.system is not None else ""
    style: dict[str, Any] = {"outline": outline, "words": words, "font": font}
    reports.draw_overview(scan, report, tile_verdicts, folder.overview_path, **style)
    reports.draw_heatmap(scan, report, tile_verdicts, folder.heatmap_path, question=topic, **style)


def _draw_gallery(slide: Slide, report: Report, tile_verdicts: list[TileVerdict], folder: Path, *, limit: int) -> None:
    """Crops of the cells that carry the verdict; an unreadable one leaves a marked empty frame in the PDF."""
    import reports

    def read(box: Box, px: int) -> NDArray[np.uint8] | None:
        try:
            return slide.crop(box, px, alone=True)
        except SlideUnreadable as error:
            log.warning("gallery: %s", error)
            return None

    reports.draw_gallery(read, report, folder, limit=limit, tile_verdicts=tile_verdicts)
