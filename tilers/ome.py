"""OME-XML as converters write it: the images of a file, their planes, colours and physical sizes.

Schema: http://www.openmicroscopy.org/Schemas/OME/2016-06; older ones have the same names.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass

from tilers.properties import number
from wsi_chat.errors import SlideUnsupported

UNIT_UM = {
    "å": 1e-4,
    "angstrom": 1e-4,
    "pm": 1e-6,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter, where the line above has the micro sign
    "um": 1.0,
    "\\u00b5m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "inch": 25_400.0,
    "in": 25_400.0,
}
MAX_XML = 64 * 2**20
MAX_PLANES = 4096


@dataclass(frozen=True, slots=True)
class OmeImage:
    """One Image element. ``size`` is (x, y, z, c, t) with c counted in planes, not in samples.

    ``planes`` maps (z, c, t) to the number of the TIFF directory; ``colours`` are RRGGBB or "" per channel.
    """

    name: str
    size: tuple[int, int, int, int, int]
    mpp: tuple[float, float] | None
    colours: tuple[str, ...]
    significant_bits: int | None
    planes: dict[tuple[int, int, int], int]
    elsewhere: bool


def unit_um(unit: object) -> float | None:
    """µm in one unit of length, or None where the unit is unknown or relative (pixel, reference frame)."""
    return UNIT_UM.get(str(unit).strip().lower())


def parse_ome_xml(text: str) -> list[OmeImage]:
    """The images of an OME-XML document, in its order.

    Raises:
        SlideUnsupported: it is not OME-XML, too large, or declares entities.
    """
    if len(text) > MAX_XML or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise SlideUnsupported("its OME-XML is too large or declares entities")
    try:
        root = ElementTree.fromstring(text.strip("\0 \n\r\t"))
    except (ElementTree.ParseError, RecursionError) as error:
        raise SlideUnsupported(f"its OME-XML cannot be parsed: {error}") from error
    return [_image(element) for element in _named(root, "Image") if next(_named(element, "Pixels"), None) is not None]


def _named(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if child.tag.rsplit("}", 1)[-1] == name)


def _image(element: ElementTree.Element) -> OmeImage:
    pixels = next(_named(element, "Pixels"))
    channels = list(_named(pixels, "Channel"))
    x, y, z, c, t = (_count(pixels, f"Size{axis}") for axis in "XYZCT")
    samples = max([_count(channel, "SamplesPerPixel") for channel in channels] or [1])
    if samples > 1:  # interleaved: the samples of one plane are counted as channels
        c = max(1, c // samples)
    if z * c * t > MAX_PLANES:
        raise SlideUnsupported(f"its OME-XML states {z} x {c} x {t} planes, more than {MAX_PLANES:,}")
    bits = number(pixels.get("SignificantBits"))
    planes, elsewhere = _planes(pixels, z, c, t)
    return OmeImage(
        name=element.get("Name") or element.get("ID") or "",
        size=(x, y, z, c, t),
        mpp=_mpp(pixels),
        colours=tuple(_colour(channel.get("Color")) for channel in channels),
        significant_bits=int(bits) if bits is not None and 1 <= bits <= 64 else None,
        planes=planes,
        elsewhere=elsewhere,
    )


def _count(element: ElementTree.Element, name: str) -> int:
    value = number(element.get(name))
    return int(value) if value is not None and 1 <= value < 2**31 else 1


def _mpp(pixels: ElementTree.Element) -> tuple[float, float] | None:
    sizes = []
    for axis in "XY":
        value = number(pixels.get(f"PhysicalSize{axis}"))
        factor = unit_um(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        sizes.append(value * factor if value is not None and factor is not None and value > 0 else math.nan)
    x, y = sizes
    if math.isnan(x) and math.isnan(y):
        return None
    return (y if math.isnan(x) else x, x if math.isnan(y) else y)


def _colour(value: str | None) -> str:
    """RRGGBB from OME's signed 32-bit RGBA; "" where there is none."""
    parsed = number(value)
    if parsed is None:
        return ""
    return f"{int(parsed) % 2**32:08X}"[:6]


def _planes(pixels: ElementTree.Element, z: int, c: int, t: int) -> tuple[dict[tuple[int, int, int], int], bool]:
    """The directory of every (z, c, t), as the TiffData elements say; and whether some lie in other files."""
    order = [axis for axis in (pixels.get("DimensionOrder") or "XYZCT").upper() if axis in "ZCT"]
    order = order if sorted(order) == ["C", "T", "Z"] else ["Z", "C", "T"]
    sizes = {"Z": z, "C": c, "T": t}
    planes: dict[tuple[int, int, int], int] = {}
    elsewhere = False
    blocks = list(_named(pixels, "TiffData"))
    named = {uuid.get("FileName") for block in blocks for uuid in _named(block, "UUID") if uuid.get("FileName")}
    for block in blocks:
        if len(named) > 1:
            elsewhere = True
        first = {axis: int(number(block.get(f"First{axis}")) or 0) for axis in "ZCT"}
        ifd = int(number(block.get("IFD")) or 0)
        whole = z * c * t
        count = int(number(block.get("PlaneCount")) or (1 if block.get("IFD") is not None else whole))
        start = first[order[0]] + sizes[order[0]] * (first[order[1]] + sizes[order[1]] * first[order[2]])
        for step in range(max(0, min(count, whole - start))):
            rest, place = start + step, {}
            for axis in order:
                rest, place[axis] = divmod(rest, sizes[axis])
            planes[place["Z"], place["C"], place["T"]] = ifd + step
    return planes, elsewhere
