"""A slide made of fields: microscope pictures laid side by side as a tiled pyramidal TIFF, with their boxes.

What is measured on single fields can so be measured through the whole line, on real cells with known places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_chat.datasets.voc import read_voc
from wsi_chat.errors import SettingError
from wsi_chat.schema import LabelledBox

TILE = 256
QUALITY = 92


def mosaic_slide(
    path: Path,
    fields: Sequence[tuple[Path, Path]],
    *,
    mpp: float,
    columns: int,
    names: Mapping[str, str] | None = None,
) -> tuple[LabelledBox, ...]:
    """Lay fields row by row into one slide, writing ``path`` and its truth ``<path>.truth.json``.

    Args:
        path: the TIFF to write: tiled, JPEG, levels of 1, 1/2 and 1/4.
        fields: (image, VOC annotation) pairs; all images have one size.
        mpp: um/px of the fields, written as the resolution of level 0.
        columns: fields in a row.
        names: class name in the annotations -> label, e.g. ``{"WBC": "wbc"}``.

    Returns:
        Every box in level-0 pixels of the slide.

    Raises:
        SettingError: there are no fields, or their sizes differ.
    """
    from PIL import Image

    if not fields:
        raise SettingError("There are no fields to lay out.", hint="Give at least one image with its annotation.")
    names = names or {}
    with Image.open(fields[0][0]) as first:
        width, height = first.size
    rows = -(-len(fields) // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    truth: list[LabelledBox] = []
    for number, (picture, annotation) in enumerate(fields):
        with Image.open(picture) as image:
            if image.size != (width, height):
                raise SettingError(
                    f"{picture} is {image.size[0]} x {image.size[1]} px, the first field {width} x {height}.",
                    hint="Lay out fields of one size.",
                )
            x, y = number % columns * width, number // columns * height
            canvas[y : y + height, x : x + width] = np.asarray(image.convert("RGB"))
        truth += [LabelledBox(names.get(t.label, t.label), t.box.shifted(x, y)) for t in read_voc(annotation)]
    write_pyramid(path, canvas, mpp=mpp)
    payload = {
        "mpp": mpp,
        "boxes": [{"label": t.label, "box": [t.box.x0, t.box.y0, t.box.x1, t.box.y1]} for t in truth],
    }
    path.with_suffix(".truth.json").write_text(json.dumps(payload) + "\n", encoding="utf-8")
    return tuple(truth)


def write_pyramid(path: Path, canvas: NDArray[np.uint8], *, mpp: float) -> None:
    """Write an RGB canvas (h, w, 3) as a tiled JPEG TIFF with levels of 1, 1/2 and 1/4 and its um/px."""
    import cv2
    import tifffile

    with tifffile.TiffWriter(path) as tiff:
        level, scale = canvas, 1
        while True:
            tiff.write(
                level,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": QUALITY},
                resolution=(1e4 / (mpp * scale), 1e4 / (mpp * scale)),
                resolutionunit="CENTIMETER",
                subfiletype=1 if scale > 1 else 0,
                metadata=None,
            )
            if scale == 4 or min(level.shape[:2]) < 2 * TILE:
                return
            scale *= 2
            smaller = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
            level = np.asarray(smaller, dtype=np.uint8)


def bccd_fields(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """The (image, annotation) pairs of one list (``train``, ``val``, ``test``) of the BCCD blood-smear data set.

    Source: the BCCD data set, MIT licence. Fields are 640 x 480 px; it states no resolution (see ``BCCD_MPP``).
    """
    names = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()
    return [(folder / "JPEGImages" / f"{name}.jpg", folder / "Annotations" / f"{name}.xml") for name in names]


BCCD_MPP = 0.075
"""um/px, derived: a red cell of 7.5 um is about 100 px wide in these fields."""

BCCD_NAMES = {"WBC": "wbc", "RBC": "rbc", "Platelets": "platelet"}
