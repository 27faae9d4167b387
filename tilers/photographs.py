"""Photographs of fields: which files are such, which of a folder belong together, and how they lie on one canvas.

Most cytology images are photographs that a camera on a microscope took, one field each. The fields of one specimen
are laid out side by side, so that whatever can be done with a slide can be done with them; `tilers.readers.fields`
opens them. A listing (``NAME.fields``, one path a line) names fields that do not lie in one folder.
"""

from __future__ import annotations

import math
import re
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tilers.properties import origin_of
from tilers.readers.plain import MAX_PIXELS, read_header
from tilers.remote import RemotePath, slide_path
from tilers.resolution import resolve_mpp
from tilers.tiff_header import read_tiff_header
from wsi_chat.errors import SlideUnsupported, WsiChatError, as_utf8
from wsi_chat.schema import ORIGIN, FieldRecord

CAMERA = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FLAT = (".tif", ".tiff")
TILE_TAGS = (322, 330)  # TileWidth and SubIFDs: a scan, whatever its size
# A field whose size nobody knows takes this much room where there is no other to go by.
UNKNOWN_PX = (1024, 768)
RUN_FILES = ("journal.sqlite", "state.json", "tiles.parquet")  # see wsi_chat.analysis.run_folder
RUN_RECORD = "run.json"
GUTTER = 0.04  # of the largest field's longer side
LEAST_GUTTER = 16
SAME_BY = 0.02
"""Resolutions are one where they differ by no more than this fraction."""
MOST_APART = 8.0
"""Photographs are shown at one scale while the coarsest is enlarged by no more than this."""
TOO_LARGE = "{} x {} px are too large for a photograph of a field"


@dataclass(frozen=True, slots=True)
class Found:
    """A photograph as its header describes it. ``size`` is None where even that cannot be read: ``error`` says why.

    ``mpp`` is µm/px where the file states a plausible value; ``origin`` is its property
    `wsi_chat.schema.ORIGIN`, empty where it says nothing of it.
    """

    path: Path
    size: tuple[int, int] | None
    mpp: float | None = None
    error: str = ""
    origin: str = ""


def is_photograph(path: Path) -> bool:
    """Whether a file is one field that a camera took: PNG, JPEG and the like by name, a TIFF by its header.

    A TIFF is one while it is a single flat image (neither tiled nor with levels or pages) of a size that is decoded
    whole. What nothing can open is judged by its name alone, and a TIFF then is none.
    """
    suffix = path.suffix.lower()
    if suffix in CAMERA:
        return True
    if suffix not in FLAT or path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("TIFF",)) as image:
                tags = getattr(image, "tag_v2", {})
                flat = getattr(image, "n_frames", 1) == 1 and not any(tag in tags for tag in TILE_TAGS)
                return flat and image.width * image.height <= MAX_PIXELS
    except Exception:  # Pillow's readers raise whatever the file makes them stumble over
        return False


def photographs_in(folder: Path) -> tuple[Path, ...]:
    """The photographs that lie directly in a folder, in the order in which a person would count them.

    The pictures in a run folder of wsi-chat are none.
    """
    if is_of_a_run(folder) or is_of_a_run(folder.parent):
        return ()
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError:
        return ()
    return in_counting_order(path for path in files if is_photograph(path))


def is_of_a_run(folder: Path) -> bool:
    """Whether a folder is one that wsi-chat wrote about a slide."""
    return any((folder / name).is_file() for name in RUN_FILES)


REPORT, SUPERSEDED = "report.json", "superseded"


def way_back(folder: Path) -> str:
    """How a slide's folder gets its report, which it lacks."""
    if (folder / SUPERSEDED / REPORT).is_file():
        return (
            f"The documents of the run before are in {folder / SUPERSEDED}. Analyze the slide again, with the new "
            "settings or with the old ones (what was answered is not asked again), or move the files back by hand."
        )
    return "It holds no report: analyze the slide's file (again); what was answered is not asked again."


def in_counting_order(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Paths by name, numbers in them by value: ``field 2`` comes before ``field 10``."""
    return tuple(sorted(paths, key=lambda path: (_counting(path.name), str(path))))


def _counting(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


# ---------------------------------------------------------------------------------------------- listing


def listing_text(paths: Sequence[Path]) -> str:
    """The text of a listing: one path a line."""
    return "".join(f"{path}\n" for path in paths)


def read_listing(path: Path) -> tuple[Path, ...]:
    """The photographs that a listing names, by path or address; relative paths start at its folder.

    Raises:
        SlideUnsupported: it is no text, or names none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SlideUnsupported(f"not a listing of fields ({error})") from error
    places = [slide_path(line) for line in lines if line and not line.startswith("#")]
    found = tuple(place if isinstance(place, RemotePath) else Path(path.parent, place) for place in places)
    if not found:
        raise SlideUnsupported("a listing that names no field")
    return found


def fields_of(path: Path) -> tuple[Path, ...]:
    """The photographs of a specimen: of a folder those in it, of a listing those that it names."""
    return photographs_in(path) if path.is_dir() else read_listing(path)


# ---------------------------------------------------------------------------------------------- layout


def look_at(path: Path) -> Found:
    """A photograph's size and resolution, from its header alone where Pillow reads it."""
    try:
        header = read_header(path)
    except SlideUnsupported as error:
        if path.suffix.lower() in FLAT or (path.is_file() and read_tiff_header(path) is not None):
            return _opened(path)
        return Found(path, None, error=_unreadable(path, error))
    except OSError as error:
        return Found(path, None, error=(error.strerror or str(error)).lower())
    said = () if header.resolution is None else (header.resolution,)
    mpp = resolve_mpp(said, objective_power=None, flag=None).value
    return Found(path, header.size, mpp, origin=origin_of(header.description).get(ORIGIN, ""))


def _unreadable(path: Path, error: SlideUnsupported) -> str:
    try:
        return "the file is empty" if path.stat().st_size == 0 else error.message
    except OSError as missing:
        return (missing.strerror or str(missing)).lower()


def _opened(path: Path) -> Found:
    from tilers.opening import open_slide

    try:
        with open_slide(path) as slide:
            if slide.size[0] * slide.size[1] <= MAX_PIXELS:
                return Found(path, slide.size, slide.mpp, origin=slide.properties.get(ORIGIN, ""))
            return Found(path, None, error=TOO_LARGE.format(*slide.size))
    except (WsiChatError, OSError) as error:
        return Found(path, None, error=getattr(error, "message", "") or str(error))


def scales_of(found: Sequence[Found]) -> tuple[float, ...] | None:
    """What each photograph is enlarged by so that all have the resolution of the finest; None where none is.

    None too where one that can be read states no resolution, or where they lie so far apart that the enlarged ones
    would no longer be decoded whole.
    """
    known = [item.mpp for item in found if item.size is not None]
    if not known or None in known:
        return None
    finest = min(mpp for mpp in known if mpp is not None)
    scales = tuple((item.mpp or finest) / finest for item in found)
    if not 1 + SAME_BY < max(scales) <= MOST_APART:
        return None
    enlarged = [item.size[0] * item.size[1] * by * by for item, by in zip(found, scales, strict=True) if item.size]
    return scales if max(enlarged) <= MAX_PIXELS else None


def lay_out(found: Sequence[Found], scales: Sequence[float] | None = None) -> tuple[FieldRecord, ...]:
    """Places for the fields, row by row on a canvas about four by three, with a margin between them.

    With ``scales`` (see `scales_of`) each takes as much room as it has when enlarged by its own. Every field has a
    slot of the same size and lies in its top left corner. One whose size is unknown takes the median of the others, so
    that what it would have held is missing, and not absent.
    """
    by = scales or (1.0,) * len(found)
    grown = [
        None if item.size is None else (round(item.size[0] * s), round(item.size[1] * s))
        for item, s in zip(found, by, strict=True)
    ]
    sizes = [size for size in grown if size is not None]
    median = (
        (round(statistics.median(w for w, _ in sizes)), round(statistics.median(h for _, h in sizes)))
        if sizes
        else UNKNOWN_PX
    )
    taken = [size or median for size in grown]
    gutter = max(LEAST_GUTTER, round(GUTTER * max(max(size) for size in taken)))
    wide, high = max(w for w, _ in taken) + gutter, max(h for _, h in taken) + gutter
    columns = max(1, min(len(taken), round(math.sqrt(len(taken) * high / wide * 4 / 3))))
    names = _names([item.path for item in found])
    return tuple(
        FieldRecord(
            number=n + 1,
            name=as_utf8(name),
            x=n % columns * wide,
            y=n // columns * high,
            width=size[0],
            height=size[1],
            scale=s,
            error=item.error,
        )
        for n, (name, item, size, s) in enumerate(zip(names, found, taken, by, strict=True))
    )


def canvas_size(fields: Sequence[FieldRecord]) -> tuple[int, int]:
    """(width, height) of the canvas that holds the fields."""
    return max(f.x + f.width for f in fields), max(f.y + f.height for f in fields)


def _names(paths: Sequence[Path]) -> list[str]:
    """File names; where two are the same, with as much of the folders above as tells them apart."""
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names) or depth > max(len(path.parts) for path in paths):
            return names
        depth += 1
