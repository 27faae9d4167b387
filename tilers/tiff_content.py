"""What a generic TIFF, an OME-TIFF or ImageJ's TIFF holds: which images are the scan's levels, planes and channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tifffile

from tilers.ome import OmeImage, parse_ome_xml, unit_um
from tilers.properties import number
from tilers.readers import Resolution
from tilers.scan_choice import ImageInFile, choose_scan, describe_left_out, is_aside, pyramid
from tilers.segments import TiffImage
from tilers.unreadable import REWRITE, UnsupportedKind
from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Remark

MAX_PAGES = 20_000
REDUCED, MASK_FLAG = 1, 4  # bits of NewSubfileType
MACRO = 9  # of an Aperio-style macro: reduced, and another kind of picture
DESCRIPTION, PAGE_NAME, X_RESOLUTION, Y_RESOLUTION, NEW_SUBFILE_TYPE = 270, 285, 282, 283, 254


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution: ``images[plane][channel]``, all of one size."""

    images: tuple[tuple[TiffImage, ...], ...]

    @property
    def first(self) -> TiffImage:
        return self.images[0][0]


@dataclass(frozen=True, slots=True)
class Content:
    """What of a file is shown: levels, finest first, and what its metadata say of them.

    ``colours``: RRGGBB or "" per channel. ``resolutions``: from OME or ImageJ metadata; the tags are not among them.
    """

    levels: tuple[Level, ...]
    resolutions: tuple[Resolution, ...] = ()
    colours: tuple[str, ...] = ()
    significant_bits: int | None = None
    notes: tuple[Remark, ...] = ()


def read_content(tiff: Any, file_size: int) -> Content:
    """Find the scan in an open ``tifffile.TiffFile``.

    Raises:
        SlideUnsupported: the file holds no scan, only labels or overviews; or images that cannot be read.
    """
    pages = _pages(tiff)
    description = _text(pages[0], DESCRIPTION)
    if description.lstrip("\ufeff \r\n").startswith("<") and "<OME" in description[:4000]:
        return _ome(pages, parse_ome_xml(description.lstrip("\ufeff")), file_size)
    if description.startswith("ImageJ="):
        return _imagej(pages, _imagej_fields(description), file_size)
    return _generic(pages, file_size)


def _pages(tiff: Any) -> list[Any]:
    pages: list[Any] = []
    try:
        for page in tiff.pages:
            if len(pages) >= MAX_PAGES:
                raise SlideUnsupported(f"it holds more than {MAX_PAGES:,} images")
            pages.append(page)
    except tifffile.TiffFileError as error:  # what is left may be an overview of the scan that is lost
        raise SlideUnsupported(f"the directory of its image {len(pages)} is damaged or cut off ({error})") from error
    if not pages:
        raise SlideUnsupported("it holds no image")
    return pages


def _text(page: Any, tag: int) -> str:
    value = getattr(page.tags.get(tag), "value", "")
    return value if isinstance(value, str) else ""


def _size(page: Any) -> tuple[int, int]:
    return int(page.imagewidth), int(page.imagelength)


# ------------------------------------------------------------------------------------------ generic


def _generic(pages: Sequence[Any], file_size: int) -> Content:
    """A pyramid in the chain of directories or in SubIFDs; flags of reduced images are believed but not needed."""
    images = [_as_candidate(page) for page in pages]
    base = choose_scan(images)
    kind = _kind(pages[base])
    aside = [is_aside(image) for image in images]
    alike = [i for i, page in enumerate(pages) if _kind(page) == kind and not aside[i]]
    sizes = [image.size for image in images]
    chain = pyramid(sizes, base, alike)
    twins = [i for i in alike if sizes[i] == sizes[base] and i != base]
    below = _sub_images(pages[base], kind)
    levels = [Level(((TiffImage(pages[i], file_size),),)) for i in chain]
    levels += _below(levels[0].first.size, below, file_size) if len(chain) == 1 else []
    notes = [*describe_left_out(images, [*chain, *twins])]
    if twins:
        notes.append(Remark("slide.same_size", n=len(twins) + 1, base=base))
    return Content(tuple(levels), notes=tuple(notes))


def _as_candidate(page: Any) -> ImageInFile:
    flags = int(getattr(page.tags.get(NEW_SUBFILE_TYPE), "value", 0) or 0)
    text = _text(page, DESCRIPTION)
    lines = [] if text.startswith(("{", "<")) else [line[:40] for line in text.splitlines()[:3]]
    name = " ".join([_text(page, PAGE_NAME), *lines])
    if flags == MACRO:
        name += " macro"
    return ImageInFile(name, _size(page), reduced=bool(flags & (REDUCED | MASK_FLAG)))


def _kind(page: Any) -> tuple[object, ...]:
    return str(page.dtype), int(page.samplesperpixel), _colour_kind(page)


def _colour_kind(page: Any) -> int:
    """Photometric interpretation; RGB and YCbCr in JPEG may change from level to level and both come as RGB."""
    value = int(page.photometric)
    return 2 if value == 6 else value


def _sub_images(page: Any, kind: tuple[object, ...]) -> list[Any]:
    if not page.subifds:
        return []
    return [sub for sub in page.pages if _kind(sub) == kind]


def _below(size: tuple[int, int], pages: Sequence[Any], file_size: int) -> list[Level]:
    chain = pyramid([size, *(_size(page) for page in pages)], 0, range(1, len(pages) + 1))
    return [Level(((TiffImage(pages[i - 1], file_size),),)) for i in chain[1:]]


# ------------------------------------------------------------------------------------------ OME-TIFF


def _ome(pages: Sequence[Any], images: Sequence[OmeImage], file_size: int) -> Content:
    if not images:
        return _generic(pages, file_size)
    candidates = [ImageInFile(image.name, image.size[:2], has_mpp=image.mpp is not None) for image in images]
    chosen = choose_scan(candidates)
    image = images[chosen]
    level = _ome_level(pages, image, file_size)
    levels = [level]
    deeper = [[_sub_images(i.page, _kind(i.page)) for i in plane] for plane in level.images]
    most = min(len(subs) for plane in deeper for subs in plane)
    for n in range(most):
        smaller = Level(tuple(tuple(TiffImage(subs[n], file_size) for subs in plane) for plane in deeper))
        if _fits(levels[-1], smaller, level):
            levels.append(smaller)
    used = [chosen]
    if most == 0:  # older writers store each resolution as an Image of its own
        same = [i for i, c in enumerate(candidates) if not is_aside(c) and images[i].size[2:] == image.size[2:]]
        for i in pyramid([c.size for c in candidates], chosen, same)[1:]:
            levels.append(_ome_level(pages, images[i], file_size))
            used.append(i)
    resolution = (Resolution(*image.mpp, "ome-xml PhysicalSize"),) if image.mpp else ()
    notes = [*describe_left_out(candidates, used)]
    if image.size[4] > 1:
        notes.append(Remark("slide.first_time", n=image.size[4]))
    return Content(tuple(levels), resolution, image.colours, image.significant_bits, tuple(notes))


def _ome_level(pages: Sequence[Any], image: OmeImage, file_size: int) -> Level:
    _, _, depth, channels, _ = image.size
    planes = image.planes or {(z, c, 0): z * channels + c for z in range(depth) for c in range(channels)}
    try:
        numbers = [[planes[z, c, 0] for c in range(channels)] for z in range(depth)]
    except KeyError as error:
        z, c, _ = error.args[0]
        raise SlideUnsupported(f"its OME-XML names no image for focal plane {z + 1} of channel {c + 1}") from error
    if image.elsewhere or any(n >= len(pages) for row in numbers for n in row):
        if len(numbers) * channels == len(pages) * 1 or not image.elsewhere:
            raise SlideUnsupported(
                f"its OME-XML states {depth * channels} planes, but the file holds {len(pages)} images: give the file "
                "that holds them all, or copy it again"
            )
        raise UnsupportedKind("its planes lie in several files; join them in one OME-TIFF", hint=REWRITE)
    level = Level(tuple(tuple(TiffImage(pages[n], file_size) for n in row) for row in numbers))
    if any(i.size != level.first.size or _kind(i.page) != _kind(level.first.page) for p in level.images for i in p):
        raise UnsupportedKind("its focal planes or channels differ in size or sample format")
    if any(i.piece != level.first.piece for plane in level.images for i in plane):
        raise UnsupportedKind("its channels are stored in tiles of different sizes", hint=REWRITE)
    if level.first.size != image.size[:2]:
        w, h = level.first.size
        raise SlideUnsupported(f"its OME-XML states {image.size[0]} x {image.size[1]} px, its image has {w} x {h} px")
    return level


def _fits(above: Level, level: Level, base: Level) -> bool:
    sizes = [base.first.size, level.first.size]
    return len(pyramid(sizes, 0, [1])) == 2 and level.first.width < above.first.width


# ------------------------------------------------------------------------------------------ ImageJ


def _imagej_fields(description: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in description[:20_000].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _imagej(pages: Sequence[Any], fields: dict[str, str], file_size: int) -> Content:
    """ImageJ's hyperstacks: channels vary fastest, then slices, then frames."""
    count = int(number(fields.get("images")) or 1)
    channels, depth, frames = (max(1, int(number(fields.get(k)) or 1)) for k in ("channels", "slices", "frames"))
    if channels * depth * frames != count:
        channels, depth, frames = 1, max(1, count), 1
    resolution = _imagej_resolution(pages[0], fields.get("unit", ""))
    resolutions = (resolution,) if resolution else ()
    if channels * depth * frames == 1:
        content = _generic(pages, file_size)
        return Content(content.levels, resolutions, notes=content.notes)
    if len(pages) < channels * depth:
        raise UnsupportedKind(
            f"it is an ImageJ stack of {count} images of which the file describes {len(pages)}; save it as OME-TIFF",
            hint=REWRITE,
        )
    rows = [[TiffImage(pages[z * channels + c], file_size) for c in range(channels)] for z in range(depth)]
    level = Level(tuple(tuple(row) for row in rows))
    if any(_kind(i.page) != _kind(pages[0]) or i.size != level.first.size for p in level.images for i in p):
        raise SlideUnsupported("its images differ in size or sample format")
    notes = (Remark("slide.first_time", n=frames),) if frames > 1 else ()
    return Content((level,), resolutions, notes=notes)


def _imagej_resolution(page: Any, unit: str) -> Resolution | None:
    """ImageJ counts pixels per its own unit in the resolution tags, which then bear no unit."""
    factor = unit_um(unit)
    x, y = (ratio(getattr(page.tags.get(tag), "value", None)) for tag in (X_RESOLUTION, Y_RESOLUTION))
    if factor is None or not x:
        return None
    return Resolution(factor / x, factor / (y or x), "imagej unit")


def ratio(value: object) -> float | None:
    """A TIFF rational, which tifffile gives as a pair, as a number above 0; None for anything else."""
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        parsed = number(value[0] / value[1])
        return parsed if parsed and parsed > 0 else None
    return None
