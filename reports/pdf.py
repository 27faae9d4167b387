"""report.pdf through Typst: one page to read, then the gallery, then evidence and methods.

Text reaches the template as JSON data and is set as strings; nothing of it is ever parsed as markup. The file is
tagged (PDF/UA-1) where Typst can vouch for it, and its timestamp comes from the report, so that the same report
gives the same bytes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from reports.fonts import chinese_font
from reports.language import Words
from reports.page import page_data
from wsi_chat._version import __version__
from wsi_chat.atomic import replacing
from wsi_chat.errors import OutputError
from wsi_chat.schema import Report, TileVerdict

logger = logging.getLogger(__name__)

TEMPLATE = "templates/report.typ"
STANDARD: Literal["ua-1"] = "ua-1"
PLACEHOLDER = "□"
# Enough for a page of text in a script without a font; more unknown characters than that are all replaced.
PROBES = 400
_PROBE = b"""#set document(title: "probe")
#set text(lang: "en")
#text(font: ("Libertinus Serif", "DejaVu Sans Mono"), sys.inputs.text)"""
CHINESE = "zh"
JPEG_QUALITY = 90
LARGE_PNG = 300_000  # bytes: an overview of photographs, which PNG does not shrink


def write_pdf(
    report: Report,
    tile_verdicts: Sequence[TileVerdict],
    *,
    folder: Path | str,
    path: Path | str,
    font_paths: Sequence[Path | str] = (),
    timestamp: int | None = None,
    words: Words | None = None,
) -> Path:
    """Write report.pdf with the pictures found in ``folder`` (overview.png, heatmap.png, gallery/*.png).

    A missing or broken picture leaves a marked empty frame. Characters that no font shows are set as □ and listed
    in the notes.

    Args:
        font_paths: further folders with fonts (or font files), for scripts that neither Typst's own nor the
            system's fonts hold.
        timestamp: seconds since 1970 for the file's metadata; by default the start of the run.
        words: the language; by default that of the report.

    Raises:
        FontMissing: the report is in Chinese and no font at hand has Chinese characters.
        OutputError: if the file cannot be written, or Typst refuses the page.
    """
    words = words or Words(report.language)
    fonts, families = _fonts([Path(entry) for entry in font_paths], chinese=words.language == CHINESE)
    root = Path(folder)
    data = page_data(report, tile_verdicts, root, words=words)
    data["version"], data["fonts"] = __version__, families
    missing = _without_glyph(set(json.dumps(data, ensure_ascii=False)), fonts)
    if missing:
        data = _replaced(data, str.maketrans(dict.fromkeys(missing, PLACEHOLDER)))
        codes = ", ".join(f"U+{ord(c):04X}" for c in sorted(missing)[:24])
        more = words("page.and_more", n=len(missing) - 24) if len(missing) > 24 else ""
        data["notes"].append(words("page.missing_glyphs", mark=PLACEHOLDER, codes=codes, more=more))
    if timestamp is None:
        timestamp = _started(report)
    with replacing(path) as place:
        data = _with_pictures(data, root, place.parent)
        pdf = _compile(data, root=place.parent, fonts=fonts, timestamp=timestamp, path=Path(path))
        place.write_bytes(pdf)
    return Path(path)


def _with_pictures(data: dict[str, Any], source: Path, root: Path) -> dict[str, Any]:
    """The page's pictures gathered under ``root``; photographs as JPEG, which takes a tenth of the bytes."""
    for name in ("overview", "heatmap"):
        if data[name]:
            path = source / data[name].lstrip("/")
            data = data | {name: _smaller(path, root) if path.stat().st_size > LARGE_PNG else _copied(path, root)}
    kept: dict[str, str] = {}
    for item in (*data["strip"], *data["gallery"]):
        if item["image"] and item["image"] not in kept:
            kept[item["image"]] = _smaller(source / item["image"].lstrip("/"), root)
    groups = {name: [item | {"image": kept.get(item["image"])} for item in data[name]] for name in ("strip", "gallery")}
    return data | groups


def _copied(path: Path, root: Path) -> str:
    shutil.copyfile(path, root / path.name)
    return f"/{path.name}"


def _smaller(path: Path, root: Path) -> str:
    with Image.open(path) as picture:
        picture.convert("RGB").save(root / f"{path.stem}.jpg", format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"/{path.stem}.jpg"


def _fonts(paths: Sequence[Path], *, chinese: bool) -> tuple[Any, list[str]]:
    """Typst's fonts, and the families to set Chinese text in where the report is Chinese."""
    import typst

    places = [str(path.parent if path.is_file() else path) for path in paths]
    if not chinese:
        return typst.Fonts(font_paths=places), []
    file = chinese_font(paths[0] if paths else None)
    fonts = typst.Fonts(font_paths=[*places, str(file.parent)])
    named = {font.family for font in fonts.fonts() if font.path and Path(font.path).resolve() == file.resolve()}
    # a collection holds one family for each region; the simplified Chinese shapes come first
    return fonts, sorted(named, key=lambda name: (not name.endswith(" SC"), name))


def _compile(data: dict[str, Any], *, root: Path, fonts: Any, timestamp: int, path: Path) -> bytes:
    import typst

    template = resources.files("reports").joinpath(TEMPLATE).read_bytes()
    inputs = {"data": json.dumps(data, ensure_ascii=False)}
    profiles: tuple[Any, ...] = ([STANDARD], [])
    for standards in profiles:
        try:
            pdf: bytes = typst.compile(
                template, root=str(root), font_paths=fonts, sys_inputs=inputs, timestamp=timestamp, format="pdf",
                pdf_standards=standards,
            )  # fmt: skip
            return pdf
        except typst.TypstError as error:
            if not standards:
                raise OutputError(
                    f"Cannot make {path}: Typst says: {error.message}.",
                    hint="Report this with the report.json that it happens with; report.json itself is complete.",
                ) from error
            logger.warning("%s is written without the %s profile: %s", path.name, STANDARD, error.message)
    raise AssertionError("unreachable")


def _started(report: Report) -> int:
    try:
        return max(0, int(datetime.fromisoformat(report.timings.started).astimezone(UTC).timestamp()))
    except (ValueError, OverflowError):
        return 0


def _without_glyph(characters: Iterable[str], fonts: Any) -> set[str]:
    """The characters that no font at hand has a glyph for, as Typst itself sees it.

    PDF/UA makes a missing glyph an error, so one tiny document answers for many characters; where it fails, its
    halves are asked.
    """
    asked = sorted(c for c in characters if not (" " <= c <= "~" or "\xa0" <= c <= "\xff"))
    missing: set[str] = set()
    waiting = [asked] if asked else []
    probes = 0
    while waiting:
        group = waiting.pop()
        probes += 1
        if probes > PROBES:
            missing.update(group)
        elif not _shown("".join(group), fonts):
            if len(group) == 1:
                missing.update(group)
            else:
                waiting += [group[: len(group) // 2], group[len(group) // 2 :]]
    return missing


def _shown(text: str, fonts: Any) -> bool:
    import typst

    try:
        typst.compile(_PROBE, font_paths=fonts, sys_inputs={"text": text}, format="pdf", pdf_standards=[STANDARD])
    except typst.TypstError:
        return False
    return True


def _replaced(value: Any, table: dict[int, str]) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, list):
        return [_replaced(entry, table) for entry in value]
    if isinstance(value, dict):
        return {key: _replaced(entry, table) for key, entry in value.items()}
    return value
