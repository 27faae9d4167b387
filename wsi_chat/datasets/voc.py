"""Pascal VOC annotations: one XML file per image, boxes in the image's pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from wsi_chat.bounded import MIB, read_bytes
from wsi_chat.errors import DocumentError, SlideError
from wsi_chat.schema import Box, LabelledBox

XML_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class VocNote:
    """One annotation file. ``size``: (width, height) that it states; ``flat``: classes of boxes without area."""

    boxes: tuple[LabelledBox, ...]
    size: tuple[int, int] | None = None
    flat: tuple[str, ...] = ()


def read_voc(path: Path) -> tuple[LabelledBox, ...]:
    """The labelled boxes of one annotation file, in file order; boxes without area are left out.

    Raises:
        SlideError: the file is missing, is no XML, or a box lacks a corner.
    """
    return read_voc_file(path).boxes


def read_voc_file(path: Path) -> VocNote:
    """All of one annotation file. Raises SlideError like `read_voc`."""
    try:
        root = ElementTree.fromstring(read_bytes(path, limit=XML_BYTES))
    except (DocumentError, ElementTree.ParseError, ValueError, LookupError) as error:
        reason = error.reason if isinstance(error, DocumentError) else error
        raise SlideError(
            f"{path} is not a VOC annotation ({reason}).", hint="Give the XML file of the image."
        ) from error
    if root.tag.rpartition("}")[2] != "annotation":  # one without objects would say that there are none
        raise SlideError(
            f"{path} is not a VOC annotation (its root is {root.tag[:40]!r}).", hint="Give the XML file of the image."
        )
    found, flat = [], []
    for number, item in enumerate(root.iter("object"), start=1):
        corners = [item.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(corner) for corner in corners if corner is not None)
        except ValueError as error:
            raise SlideError(f"{path}: object {number} has the corners {corners}.", hint="Correct the file.") from error
        label = str(item.findtext("name") or "").strip()
        if not label:
            raise SlideError(f"{path}: object {number} has no name.", hint="Correct the file.")
        if math.isfinite(x0 + y0 + x1 + y1) and x1 > x0 and y1 > y0:
            found.append(LabelledBox(label, Box(x0, y0, x1, y1)))
        else:
            flat.append(label)
    return VocNote(tuple(found), _size(root), tuple(flat))


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """What the annotation states; None where it states nothing, or 0 as some tools do."""
    try:
        width, height = (round(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None
