"""Pascal VOC annotations: one XML file per image, boxes in the image's pixels."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from wsi_chat.errors import SlideError
from wsi_chat.schema import Box, LabelledBox


def read_voc(path: Path) -> tuple[LabelledBox, ...]:
    """The labelled boxes of one annotation file, in file order; boxes without area are left out.

    Raises:
        SlideError: the file is missing, is no XML, or a box lacks a corner.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise SlideError(f"{path}: not a VOC annotation ({error}).", hint="Give the XML file of the image.") from error
    found = []
    for number, item in enumerate(root.iter("object"), start=1):
        corners = [item.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(corner) for corner in corners if corner is not None)
        except ValueError as error:
            raise SlideError(f"{path}: object {number} has the corners {corners}.", hint="Mend the file.") from error
        if x1 > x0 and y1 > y0:
            found.append(LabelledBox(str(item.findtext("name") or ""), Box(x0, y0, x1, y1)))
    return tuple(found)
