"""COCO detection files as tools export them: which categories are classes, and which objects have a box.

A category that only groups others (Roboflow's root) is not a class. Where a picture shows a cell of a category, nothing
is claimed about the categories above or below it, to which the cell belongs too or may belong.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_chat.datasets.annotated import Annotated, Renaming
from wsi_chat.datasets.pictures import locate
from wsi_chat.datasets.sources import picture_of, read_json, with_known
from wsi_chat.errors import SlideError
from wsi_chat.remarks import counted
from wsi_chat.schema import Box, LabelledBox

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Categories:
    """The categories of a file: ``labels`` by id, and for each label those above and below it."""

    labels: Mapping[Any, str]
    related: Mapping[str, frozenset[str]]
    classes: frozenset[str]


def read_coco(file: Path, *, images: Path | None = None, rename: Renaming, exhaustive: bool = True) -> list[Annotated]:
    """Pictures of a COCO detection file; ``images`` is their folder (default: the file's own).

    ``bbox`` is x, y, width, height in pixels; where it is missing, the bounds of the segmentation. Crowd regions and
    boxes without area give no box: nothing is said about their class in that picture. An image's ``patient``,
    ``patient_id`` or ``slide`` field, where there is one, is its group.

    Raises:
        SlideError: the file, an id or a picture is wrong or missing, or a picture is of another size than the file
            states.
    """
    content = read_json(file)
    boxes: dict[Any, list[LabelledBox]] = defaultdict(list)
    unsure: dict[Any, set[str]] = defaultdict(set)
    without_box: Counter[str] = Counter()
    try:
        entries = {entry["id"]: entry for entry in content["images"]}
        categories = _categories(content["categories"], content["annotations"], rename)
        for note in content["annotations"]:
            label, image = categories.labels[note["category_id"]], entries[note["image_id"]]["id"]
            box = None if note.get("iscrowd") else _box(note)
            unsure[image] |= categories.related.get(label, frozenset())
            if box is None:
                unsure[image].add(label)
                without_box[label] += 1
            else:
                boxes[image].append(LabelledBox(label, box))
        found = []
        for key, entry in entries.items():
            path = locate(str(entry.get("file_name", "")), (images or file.parent,), option="--images")
            group = str(entry.get("patient") or entry.get("patient_id") or entry.get("slide") or "")
            found.append(
                picture_of(
                    path, boxes[key], group=group, source=file.name, stated=_size(entry), unsure=frozenset(unsure[key])
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SlideError(
            f"{file} is not a COCO file ({type(error).__name__}: {error}).", hint="Export it again as COCO detection."
        ) from error
    for label, number in sorted(without_box.items()):
        log.warning(
            "%s: %s of %s is a crowd or has no area: nothing is asked about %s in its picture",
            file.name, counted(number, "object"), label, label,
        )  # fmt: skip
    return with_known(found, exhaustive, categories.classes)


def _categories(entries: Any, annotations: Any, rename: Renaming) -> Categories:
    used = {note["category_id"] for note in annotations}
    names = {entry["id"]: str(entry["name"]) for entry in entries}
    above = {str(entry["name"]): str(entry.get("supercategory") or "") for entry in entries}
    groups = {parent for name, parent in above.items() if parent != name}
    classes = frozenset(rename(name) for id_, name in names.items() if id_ in used or name not in groups)
    related: dict[str, set[str]] = defaultdict(set)
    for name in above:
        for parent in _ancestors(name, above):
            if parent in above:
                related[rename(name)].add(rename(parent))
                related[rename(parent)].add(rename(name))
    kin = {label: frozenset(labels - {label}) for label, labels in related.items()}
    return Categories({id_: rename(name) for id_, name in names.items()}, kin, classes)


def _ancestors(name: str, above: Mapping[str, str]) -> list[str]:
    found: list[str] = []
    while (parent := above.get(name, "")) and parent != name and parent not in found:
        found.append(parent)
        name = parent
    return found


def _box(note: Mapping[str, Any]) -> Box | None:
    """The box of an annotation, None where it has no area."""
    if note.get("bbox"):
        x, y, width, height = (float(value) for value in note["bbox"])
    else:
        points = [float(value) for polygon in note["segmentation"] for value in polygon]
        xs, ys = points[::2], points[1::2]
        if not xs:
            return None
        x, y, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"bbox {note.get('bbox')} is not finite")
    return Box(x, y, x + width, y + height) if width > 0 and height > 0 else None


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) that the file states for a picture, None where it states none."""
    width, height = entry.get("width"), entry.get("height")
    if not isinstance(width, int | float) or not isinstance(height, int | float) or width <= 0 or height <= 0:
        return None
    return round(width), round(height)
