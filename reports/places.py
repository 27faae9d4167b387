"""Where something lies, as a reader is told: on a slide in mm from the scan's corner, in a photograph in its pixels.

Of a specimen of several photographs every place names its field, so that it can be found in the file that the user
has. Where nobody stated a scale, no length is given in µm.
"""

from __future__ import annotations

from reports.language import Words
from wsi_chat.remarks import number
from wsi_chat.schema import Box, Report


def own_box(report: Report, box: Box) -> Box:
    """A box in the pixels of its photograph; of a slide the box itself."""
    field = report.slide.field_at(box)
    return box if field is None else field.own(box)


def position(report: Report, box: Box, words: Words) -> str:
    """The middle of a box: ``x 1.20, y 0.35 mm``, or ``field 7 (name.jpg), x 120, y 340 px``."""
    return _named(report, box, words, *own_box(report, box).center, axes=True)


def corner(report: Report, box: Box, words: Words) -> str:
    """The top left corner of a box, in the same way but without the names of the axes."""
    own = own_box(report, box)
    return _named(report, box, words, own.x0, own.y0)


def center(report: Report, box: Box, words: Words) -> str:
    """The middle of a box as `corner` gives a corner."""
    return _named(report, box, words, *own_box(report, box).center)


def _named(report: Report, box: Box, words: Words, x: float, y: float, *, axes: bool = False) -> str:
    slide = report.slide
    field = slide.field_at(box)
    if field is None and slide.scale_known:
        x, y = x * slide.mpp / 1000, y * slide.mpp / 1000
        return f"x {x:.2f}, y {y:.2f} mm" if axes else f"{x:.2f}, {y:.2f}"
    where = f"x {x:.0f}, y {y:.0f} px" if axes else f"{x:.0f}, {y:.0f} px"
    if field is None:
        return where
    return f"{words('page.in_field', number=field.number, name=field.name)}{words.between}{where}"


def extent(report: Report, box: Box) -> str:
    """Width and height in µm; in px, and saying so, where the scale is not known."""
    if not report.slide.scale_known:
        return f"{box.width:.0f} × {box.height:.0f} px"
    mpp = report.slide.mpp
    return f"{box.width * mpp:.0f} × {box.height * mpp:.0f}"


def side(report: Report, um: float) -> str:
    """A length that is shown, ``60 µm``; in px where the scale is not known."""
    return f"{um:.0f} µm" if report.slide.scale_known else f"{um / report.slide.mpp:.0f} px"


def size(report: Report, words: Words | None = None) -> str:
    """The size of a scan, ``12.40 × 8.10 mm (24,800 × 16,200 px)``; of photographs how many and how large."""
    slide = report.slide
    if slide.fields:
        sizes = sorted({field.own_size for field in slide.fields if not field.error})
        each = " – ".join(f"{number(w)} × {number(h)} px" for w, h in dict.fromkeys((sizes[0], sizes[-1])))
        n = len(slide.fields)
        told = words("page.fields_number", n=n) if words else f"{n} field{'' if n == 1 else 's'}"
        return f"{told} ({each})"
    pixels = f"{number(slide.width)} × {number(slide.height)} px"
    if not slide.scale_known:
        return pixels
    return f"{slide.width * slide.mpp / 1000:.2f} × {slide.height * slide.mpp / 1000:.2f} mm ({pixels})"
