"""The fields of one specimen as one picture: photographs side by side on a canvas, each decoded when it is needed.

Between the fields there is no data. A field that cannot be read makes every read that touches it fail, so that its
tiles are recorded as unreadable.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tilers.fingerprint import fingerprint
from tilers.opening import open_slide
from tilers.photographs import SAME_BY, canvas_size, fields_of, lay_out, look_at, scales_of
from tilers.readers import LISTING, Backend, Pixels, Resolution
from wsi_chat.errors import SlideUnreadable, SlideUnsupported, WsiChatError
from wsi_chat.schema import ORIGIN, FieldRecord, Remark

CACHE_BYTES = 256 * 2**20


class FieldsBackend(Backend):
    """Photographs on one canvas; one object serves every thread."""

    shareable = True

    def __init__(self, paths: Sequence[Path]) -> None:
        found = [look_at(path) for path in paths]
        self._found, self._paths = found, tuple(paths)
        self.level_downsamples = (1.0,)
        self._cache: OrderedDict[int, Pixels] = OrderedDict()
        self._lock = threading.Lock()
        self.properties = {"fields.number": str(len(paths))}
        origins = {item.origin for item in found}
        if len(origins) == 1 and "" not in origins:  # one field of unknown origin, or unreadable, and nobody knows it
            self.properties[ORIGIN] = origins.pop()
        self._lay_out(scales_of(found))
        self.digest = self._digest()

    def _lay_out(self, scales: Sequence[float] | None) -> None:
        self.fields = lay_out(self._found, scales)
        self.level_sizes = (canvas_size(self.fields),)
        pairs = zip(self.fields, self._found, strict=True)
        self.resolutions, differ = _resolution({field: item.mpp for field, item in pairs if not field.error})
        self.notes = (*_missing(self.fields), *differ)

    def disregard_scales(self) -> None:
        if any(field.scale != 1 for field in self.fields):
            self._lay_out(None)

    def _digest(self) -> str:
        """Hex SHA-256 over every field's name, size and content; see `tilers.fingerprint`."""
        digest = hashlib.sha256(b"fields")
        for path, field in zip(self._paths, self.fields, strict=True):
            digest.update(f"|{field.name}|".encode(errors="surrogateescape"))
            try:
                digest.update(fingerprint(path, [field.own_size]).encode())
            except OSError as error:
                digest.update(type(error).__name__.encode())
        return digest.hexdigest()

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        out = np.zeros((height, width, 4), np.uint8)
        for number, field in enumerate(self.fields):
            x0, x1 = max(x, field.x), min(x + width, field.x + field.width)
            y0, y1 = max(y, field.y), min(y + height, field.y + field.height)
            if x1 <= x0 or y1 <= y0:
                continue
            pixels = self._pixels(number)[y0 - field.y : y1 - field.y, x0 - field.x : x1 - field.x]
            spot = out[y0 - y : y1 - y, x0 - x : x1 - x]
            spot[..., :3] = pixels[..., :3]
            spot[..., 3] = 255
        return out

    def _pixels(self, number: int) -> Pixels:
        field = self.fields[number]
        if field.error:
            raise SlideUnreadable(f"field {field.number} ({field.name}): {field.error}")
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        pixels = _decoded(self._paths[number], field)
        with self._lock:
            self._cache[number] = pixels
            while len(self._cache) > 1 and sum(held.nbytes for held in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return pixels

    def close(self) -> None:
        with self._lock:
            self._cache.clear()


def _missing(fields: Sequence[FieldRecord]) -> tuple[Remark, ...]:
    broken = [field for field in fields if field.error]
    if len(broken) == len(fields):
        raise SlideUnreadable(
            f"None of the {len(broken)} photographs can be read; the first, {broken[0].name}: {broken[0].error}",
            hint="Copy the files again from their source.",
        )
    return tuple(Remark("fields.missing", number=f.number, name=f.name, error=f.error.rstrip(".")) for f in broken)


def _resolution(
    stated: Mapping[FieldRecord, float | None],
) -> tuple[tuple[Resolution, ...], tuple[Remark, ...]]:
    """The resolution of the canvas: what every field states if they agree, else that of the finest where each field is
    shown at its own; and a remark where they do not agree."""
    known = {field: mpp for field, mpp in stated.items() if mpp is not None}
    if not known:
        return (), ()
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    apart = known[high] > known[low] * (1 + SAME_BY)
    ends: dict[str, Any] = {"a": low.name, "mpp_a": known[low], "b": high.name, "mpp_b": known[high]}
    if apart and all(field.scale == 1 for field in stated):
        return (), (Remark("fields.scales_differ", **ends),)
    if len(known) < len(stated):
        return (), ()
    own = (Resolution(known[low], known[low], "the photographs' own resolution"),)
    return own, (Remark("fields.own_scales", **ends),) if apart else ()


def _decoded(path: Path, field: FieldRecord) -> Pixels:
    try:
        with open_slide(path) as slide:
            if slide.size != field.own_size:
                raise SlideUnreadable(f"it is another image than before: {slide.size[0]} x {slide.size[1]} px")
            pixels = slide.read_region(0, 0, 0, *slide.size)
    except WsiChatError as error:
        reason = error.message.removeprefix(f"{path.name}: ")
        raise SlideUnreadable(f"field {field.number} ({field.name}): {reason}", hint=error.hint) from error
    if slide.size == (field.width, field.height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((field.width, field.height), Image.Resampling.LANCZOS))


def open_backend(path: Path) -> Backend:
    """Open the photographs of a folder, or those that a listing names, as one specimen.

    Raises:
        SlideUnsupported: neither a folder with photographs nor a listing; or their resolutions differ.
        SlideUnreadable: none of them can be read.
    """
    if not path.is_dir() and path.suffix.lower() != LISTING:
        raise SlideUnsupported("neither a folder of photographs nor a listing of them")
    paths = fields_of(path)
    if not paths:
        raise SlideUnsupported("a folder without photographs")
    return FieldsBackend(paths)
