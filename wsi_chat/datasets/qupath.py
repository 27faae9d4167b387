"""Objects that QuPath exports as GeoJSON: which of them are cells, of which class, and where.

Reads what QuPath writes: ``name`` and ``names`` of derived classes, a class as a bare text, polygons alone, several in
one object, or in a collection. What marks a cell without outlining it (a point, a line, an object without geometry)
gives no box; it is counted, named aloud, and kept as a place where nothing may be said about its class.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_chat.datasets.annotated import Renaming
from wsi_chat.datasets.sources import read_json
from wsi_chat.errors import SlideError
from wsi_chat.remarks import counted
from wsi_chat.schema import Box, LabelledBox

log = logging.getLogger(__name__)

OBJECTS = frozenset({"annotation", "detection", "cell"})
"""Types of QuPath objects that mark something; the others are its tiles, cores and roots."""
POINTS = {"Point": 0, "MultiPoint": 1}
LINES = {"LineString": 1, "MultiLineString": 2}
AREAS = {"Polygon": 2, "MultiPolygon": 3}
"""Geometry -> how deep its positions are nested."""
MARKED_BY = {
    "point": ("marked by a point", "marked by points"),
    "line": ("marked by a line", "marked by lines"),
    "flat": ("with an outline that has no area", "with outlines that have no area"),
    "none": ("without a geometry", "without a geometry"),
}
"""What marks an object that gives no box, for one and for several."""


@dataclass(frozen=True, slots=True)
class Marked:
    """What is marked on one slide, in level-0 pixels.

    ``places``: where a cell of a class is marked that has no box (a point is a box without area). ``unplaced``: class
    -> how many objects say nothing of where they are: no tile can be said to be without it.
    """

    boxes: tuple[LabelledBox, ...]
    places: tuple[LabelledBox, ...] = ()
    unplaced: Counter[str] = field(default_factory=Counter)

    @property
    def labels(self) -> frozenset[str]:
        """Classes of which boxes were drawn, and all of whose objects have a place."""
        return frozenset(found.label for found in self.boxes) - set(self.unplaced)


def read_geojson(file: Path, *, rename: Renaming, bounds: Box | None = None) -> Marked:
    """The classified objects of a QuPath GeoJSON; ``bounds`` is the slide's scanned area, if it has one.

    Each part of an object with several gives a box. Left out, with their number, are objects without a class,
    QuPath's tiles, and ignored classes (their names end in ``*``). A derived class such as ``lsil: Positive`` is the
    part of it that is known, else its first part, unless it is renamed as a whole.

    Raises:
        SlideError: the file is no FeatureCollection (or list of features), a geometry is broken, or cells are marked
            and none of them has an outline.
    """
    reading = _Reading(file, rename, (bounds.x0, bounds.y0) if bounds else (0.0, 0.0))
    for number, feature in enumerate(_features(file), start=1):
        reading.take(number, feature)
    return reading.marked()


def _features(file: Path) -> list[Any]:
    content = read_json(file)
    features = content
    if isinstance(content, dict):
        features = [content] if content.get("type") == "Feature" else content.get("features")
    if not isinstance(features, list):
        raise SlideError(f"{file} holds no list of features.", hint="Export objects from QuPath as GeoJSON.")
    return features


class _Reading:
    """The objects of a file so far, and what became of those that give no box."""

    def __init__(self, file: Path, rename: Renaming, offset: tuple[float, float]) -> None:
        self.file, self.rename, self.offset = file, rename, offset
        self.boxes: list[LabelledBox] = []
        self.places: list[LabelledBox] = []
        self.unplaced: Counter[str] = Counter()
        self.without_box: Counter[tuple[str, str]] = Counter()
        self.derived: Counter[tuple[str, str]] = Counter()
        self.unclassified = 0

    def take(self, number: int, feature: Any) -> None:
        try:
            properties = feature.get("properties") or {}
            if _object_type(properties) not in OBJECTS:
                return
            names = class_names(properties.get("classification"))
            if not names:
                self.unclassified += 1
                return
            if any(name.endswith("*") for name in names):
                return
            label = self._label(names)
            shapes = list(_shapes(feature.get("geometry")))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise SlideError(
                f"{self.file}: feature {number} cannot be read ({error}).", hint="Export it from QuPath again."
            ) from error
        areas = [box for kind, box in shapes if kind == "area"]
        # what is left of a line where two outlines met lies inside them, and marks nothing by itself
        rest = [(kind, box) for kind, box in shapes if kind != "area" and not any(_inside(box, area) for area in areas)]
        self.boxes += [LabelledBox(label, self._shifted(box)) for box in areas]
        for kind, box in rest:
            self.without_box[label, kind] += 1
            self.places.append(LabelledBox(label, self._shifted(box)))
        if not shapes:
            self.without_box[label, "none"] += 1
            self.unplaced[label] += 1

    def _label(self, names: Sequence[str]) -> str:
        whole = ": ".join(names)
        label = self.rename.derived(names)
        if len(names) > 1:
            self.derived[whole, label] += 1
        return label

    def _shifted(self, box: Box) -> Box:
        return box.shifted(*self.offset)

    def marked(self) -> Marked:
        for (whole, label), number in sorted(self.derived.items()):
            objects = f"{counted(number, 'object')} of the class {whole!r} {'is' if number == 1 else 'are'}"
            log.warning("%s: %s taken as %r", self.file.name, objects, label)
        for (label, kind), number in sorted(self.without_box.items()):
            where = "on this slide where a count or an absence would be claimed" if kind == "none" else "there"
            log.warning(
                "%s: %s of %s %s %s no box: nothing is asked about %s %s",
                self.file.name, counted(number, "object"), label, MARKED_BY[kind][number != 1],
                "gives" if number == 1 else "give", label, where,
            )  # fmt: skip
        if self.unclassified:
            log.warning("%s: left out: %s without a class", self.file.name, counted(self.unclassified, "object"))
        if self.without_box and not self.boxes:
            kinds = sorted({MARKED_BY[kind][1] for _, kind in self.without_box})
            objects = counted(sum(self.without_box.values()), "object")
            raise SlideError(
                f"{self.file}: {objects} of {', '.join(sorted({label for label, _ in self.without_box}))} "
                f"{' or '.join(kinds)}: none has an outline, so there are no boxes to learn from.",
                hint="Outline the cells in QuPath, e.g. with its cell detection, and export them again.",
            )
        return Marked(tuple(self.boxes), tuple(self.places), self.unplaced)


def _object_type(properties: dict[str, Any]) -> str:
    """``annotation`` of ``annotation`` (0.3 and later) and of ``PathAnnotationObject`` (before)."""
    written = properties.get("objectType", properties.get("object_type", "annotation"))
    plain = str(written).lower().replace("_", "").replace(" ", "")
    found = re.fullmatch(r"path(.+?)object", plain)
    return found[1] if found else plain


def class_names(classification: Any) -> tuple[str, ...]:
    """The parts of a QuPath class, base first; empty where there is none.

    ``{"name": "lsil: Positive"}``, ``{"names": ["lsil", "Positive"]}`` and the bare text are the same class.
    """
    if isinstance(classification, dict):
        names = classification.get("names") or classification.get("name")
    else:
        names = classification
    parts = names.split(":") if isinstance(names, str) else names
    if parts is None:
        return ()
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"its class is {classification!r}")
    return tuple(part.strip() for part in parts if part.strip())


def _shapes(geometry: Any) -> Iterator[tuple[str, Box]]:
    """(``area``, ``flat``, ``line`` or ``point``, its bounds) of each part of a geometry; nothing for none."""
    if geometry is None:
        return
    kind = geometry["type"]
    if kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _shapes(part)
        return
    depth = {**POINTS, **LINES, **AREAS}.get(kind)
    if depth is None:
        raise ValueError(f"a geometry of type {kind!r}")
    coordinates = geometry["coordinates"]
    if not isinstance(coordinates, list):
        raise ValueError("its coordinates are no list")
    whole = depth if kind in ("Point", "LineString", "Polygon") else depth - 1
    for part in [coordinates] if whole == depth else coordinates:
        positions = list(_positions(part, whole))
        if not positions:
            continue
        box = _bounds(positions)
        if kind in POINTS:
            yield "point", box
        elif kind in LINES:
            yield "line", box
        else:
            yield ("area" if box.x1 > box.x0 and box.y1 > box.y0 else "flat"), box


def _positions(part: Any, depth: int) -> Iterator[tuple[float, float]]:
    if depth > 0:
        for inner in part:
            yield from _positions(inner, depth - 1)
        return
    if part:
        x, y = float(part[0]), float(part[1])
        if not math.isfinite(x + y):
            raise ValueError("a coordinate is not finite")
        yield x, y


def _bounds(positions: Sequence[tuple[float, float]]) -> Box:
    xs, ys = [x for x, _ in positions], [y for _, y in positions]
    return Box(min(xs), min(ys), max(xs), max(ys))


def _inside(box: Box, area: Box) -> bool:
    return area.x0 <= box.x0 and area.y0 <= box.y0 and box.x1 <= area.x1 and box.y1 <= area.y1
