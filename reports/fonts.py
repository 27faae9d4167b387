"""A font for Chinese text: given by the user, from a Python package, or from the system's usual folders.

Typst refuses a page with a glyph that none of its fonts has, so the font is looked for before any work is done.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont

from wsi_chat.errors import OutputError
from wsi_chat.names import from_home

PACKAGE = "cvttf_NotoSansCJK_Regular"
SUFFIXES = (".otf", ".ttf", ".ttc", ".otc")
# Names of fonts with simplified Chinese, the plain-stroked ones first: as files are called, in lower case.
KNOWN = (
    "notosanscjk", "notosanssc", "sourcehansans", "pingfang", "hiraginosansgb", "msyh", "dengxian", "deng",
    "wqy-microhei", "wqy-zenhei", "droidsansfallback", "simhei", "stheiti", "notoserifcjk", "sourcehanserif", "simsun",
    "songti", "ukai", "uming",
)  # fmt: skip
SAMPLE = "切片评分覆盖率阈值细胞未见上皮内病变"
DEPTH = 4


class FontMissing(OutputError):
    """No font at hand has Chinese characters."""

    def __init__(self, font_path: str | None = None) -> None:
        tried = f"{font_path}, " if font_path else ""
        super().__init__(
            "A PDF in Chinese needs a font with Chinese characters, and there is none: looked in "
            f"{tried}the package {PACKAGE} and the system's font folders.",
            hint="Install one (pip install 'wsi-chat[cjk]', or apt-get install fonts-noto-cjk), or name a font file or "
            "folder as font_path (in a YAML file with --config, or as WSI_CHAT_FONT_PATH), or leave the PDF out "
            "(--format html): HTML and JSON need none.",
        )


def chinese_font(font_path: str | Path | None = None) -> Path:
    """The file of a font that has Chinese characters.

    Looks at ``font_path`` (a file or a folder), then at the package of the extra ``cjk``, then at the usual folders
    of Linux, macOS and Windows.

    Raises:
        FontMissing: there is none; the hint names the ways out.
    """
    for candidate in _candidates(font_path):
        if _has_chinese(candidate):
            return candidate
    raise FontMissing(str(font_path) if font_path else None)


def _candidates(font_path: str | Path | None) -> Iterator[Path]:
    if font_path is not None:
        yield from _in_order(from_home(font_path), named_only=False)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:
        yield from _in_order(Path(spec.origin).parent, named_only=False)
    for folder in folders():
        yield from _in_order(folder, named_only=True)


def folders() -> list[Path]:
    """Where systems keep their fonts; those that are there."""
    home = Path.home()
    usual = [
        home / ".local/share/fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts"),
        home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts"),
    ]  # fmt: skip
    if sys.platform == "win32":
        usual.append(Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts")
    return [folder for folder in usual if folder.is_dir()]


def _in_order(place: Path, *, named_only: bool) -> list[Path]:
    """Font files of a folder, the best known names first; with ``named_only`` those alone."""
    if place.is_file():
        return [place]
    found: list[tuple[int, str, Path]] = []
    start = len(place.parts)
    for root, below, files in os.walk(place):
        if len(Path(root).parts) - start >= DEPTH:
            below.clear()
        for name in files:
            plain = name.casefold().replace(" ", "")
            if not plain.endswith(SUFFIXES):
                continue
            rank = next((n for n, known in enumerate(KNOWN) if plain.startswith(known)), len(KNOWN))
            if rank < len(KNOWN) or not named_only:
                # of one family the regular weight: a report set in thin or black strokes reads badly
                found.append((rank, f"{'regular' not in plain}{plain}", Path(root) / name))
    return [path for *_, path in sorted(found)]


@cache
def _has_chinese(path: Path) -> bool:

    try:
        font = ImageFont.truetype(str(path), 16)
        missing = bytes(font.getmask("\U0010fffe"))
        shapes = {bytes(font.getmask(character)) for character in SAMPLE}
    except (OSError, ValueError):
        return False
    return len(shapes) > len(SAMPLE) // 2 and missing not in shapes
