"""Which of several images in a file is the scan. Labels, macros and small overviews are never taken for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Remark

# Words by which scanners and converters name what is not the scan.
ASIDES = frozenset(
    {"label", "labels", "macro", "overview", "thumbnail", "thumb", "barcode", "preview", "navigator", "slidelabel"}
)


@dataclass(frozen=True, slots=True)
class ImageInFile:
    """One image as the choice sees it: its name or description, size in px, and whether it states µm per px."""

    name: str
    size: tuple[int, int]
    has_mpp: bool = False
    reduced: bool = False

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def words(self) -> frozenset[str]:
        return frozenset(re.findall(r"[a-z]+", re.sub(r"label[\W_]*free", "", self.name.lower())))


def choose_scan(images: Sequence[ImageInFile]) -> int:
    """Index of the scan: not named as a label or macro, with a stated resolution if any has one, and the largest.

    A word that every image bears (a file's own name, often) tells nothing where another one tells them apart.

    Raises:
        SlideUnsupported: there is no image, or every one is named as a label, macro or overview.
    """
    shared = frozenset.intersection(*(image.words for image in images)) if images else frozenset()
    if not any((image.words - shared) & ASIDES for image in images):
        shared = frozenset()
    scans = [
        i
        for i, image in enumerate(images)
        if min(image.size) > 0 and not image.reduced and not (image.words - shared) & ASIDES
    ]
    if images and all(min(image.size) < 1 for image in images):
        raise SlideUnsupported(f"an image claims {images[0].size[0]} x {images[0].size[1]} px")
    if not scans:
        names = ", ".join(repr(image.name) for image in images) or "none"
        raise SlideUnsupported(f"it holds no image of the scan, only label, macro or overview (images: {names})")
    stated = [i for i in scans if images[i].has_mpp]
    return max(stated or scans, key=lambda i: images[i].area)


def is_aside(image: ImageInFile) -> bool:
    """Whether an image is named as a label, macro or overview."""
    return bool(image.words & ASIDES)


def check_first_image(vendor: str, description: str, *, tiled: bool) -> None:
    """Refuse a scanner's file whose scan is lost, where a reader would take what comes next for it.

    Aperio writes the full resolution first, tiled; smaller levels say ``width x height -> width x height``.

    Raises:
        SlideUnsupported: the image is a thumbnail, a label, a macro or a smaller level.
    """
    head = " ".join(description.splitlines()[:2])[:400]
    if not tiled or is_aside(ImageInFile(head, (1, 1))) or (vendor.lower() == "aperio" and "->" in head.split(";")[0]):
        raise SlideUnsupported(
            "the directory of its scan is damaged or missing; thumbnail, label, macro and smaller levels are never"
            " read in its place"
        )


def describe_left_out(images: Sequence[ImageInFile], used: Sequence[int]) -> tuple[Remark, ...]:
    """A note on the images that are not shown, by size; nothing where all are used."""
    sizes = [f"{image.size[0]} x {image.size[1]} px" for i, image in enumerate(images) if i not in used]
    if not sizes:
        return ()
    return (Remark("slide.left_out", n=len(sizes), sizes=", ".join(sizes[:4]) + (", ..." if len(sizes) > 4 else "")),)


def pyramid(sizes: Sequence[tuple[int, int]], base: int, allowed: Sequence[int]) -> list[int]:
    """Indices of the images that show the same area as ``base`` at lower resolutions, finest first.

    Writers round sizes up or down at each halving, so a level may be a pixel or two off; another image's proportions
    are not that close.
    """
    width, height = sizes[base]
    levels = [base]
    for i in sorted(allowed, key=lambda n: -sizes[n][0] * sizes[n][1]):
        w, h = sizes[i]
        if i == base or min(w, h) < 1 or w >= width or h > height:
            continue
        factor = max(width / w, height / h)
        if abs(width / factor - w) > 2.5 or abs(height / factor - h) > 2.5:
            continue
        last_w, last_h = sizes[levels[-1]]
        if last_w / w > 1.2 or last_h / h > 1.2:
            levels.append(i)
    return levels
