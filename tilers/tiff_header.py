"""A first look at a TIFF, without any library: whose file it is, and whether its tiles have a sane size.

Libraries allocate, and some abort the process, on the word of a header. Nothing here allocates more than a directory,
follows more than MAX_DIRECTORIES of them, or trusts an offset beyond the end of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

MAX_DIRECTORIES = 4096
MAX_ENTRIES = 1024
MAX_TEXT = 4096
MAX_TILES = 4_000_000  # of an image, when gaps among them are looked for
MAX_TILE_BYTES = 256 * 2**20  # a tile is decoded whole
LOOKED_AT = 64  # tiles of an image whose sizes are compared with its directory
RAW = 1

WIDTH, LENGTH, BITS, COMPRESSION, DESCRIPTION, SAMPLES, SOFTWARE = 256, 257, 258, 259, 270, 277, 305
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325
SUB_DIRECTORIES, XMP, HAMAMATSU, PLANAR = 330, 700, 65420, 284
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WANTED = {
    WIDTH,
    LENGTH,
    BITS,
    COMPRESSION,
    PLANAR,
    DESCRIPTION,
    SAMPLES,
    SOFTWARE,
    TILE_WIDTH,
    TILE_LENGTH,
    SUB_DIRECTORIES,
    XMP,
    HAMAMATSU,
    TILE_OFFSETS,
    TILE_COUNTS,
}


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """``vendor`` of the scanner whose own layout the file follows, or "" for a generic TIFF.

    ``objection``: why no library may open the file, or "". ``goes_on``: where its directories go on beyond the end of
    the file, or None.
    """

    vendor: str
    objection: str
    goes_on: int | None = None


@dataclass(frozen=True, slots=True)
class _Form:
    order: str
    big: bool
    size: int
    beyond: list[int] = field(default_factory=list)  # where directories should be that the file does not reach

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def entry_bytes(self) -> int:
        return 20 if self.big else 12


_Entries = dict[int, tuple[int, int, bytes]]  # tag: type, count, value or offset


def read_tiff_header(path: Path) -> TiffHeader | None:
    """Look at a file; None where it is not a TIFF. Damaged directories are passed over: readers judge them."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        form = _form(file, path.stat().st_size)
        if form is None:
            return None
        vendor, objection = "", ""
        for number, entries in enumerate(_directories(file, form)):
            if entries is None:
                objection = objection or "its directories lead in a circle"
                continue
            vendor = vendor or _vendor(file, form, entries)
            objection = objection or _objection(file, form, entries, number)
    return TiffHeader(vendor, objection, form.beyond[0] if form.beyond else None)


def has_gaps(path: Path) -> bool:
    """Whether a tile of a TIFF was never written, or lies beyond the end of the file."""
    with path.open("rb") as file:
        form = _form(file, path.stat().st_size)
        return form is not None and any(_has_gaps(file, form, entries or {}) for entries in _directories(file, form))


def _form(file: BinaryIO, size: int) -> _Form | None:
    head = file.read(4)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 4:
        return None
    version = struct.unpack(order + "H", head[2:4])[0]
    return _Form(order, version == 43, size) if version in (42, 43) else None


def _directories(file: BinaryIO, form: _Form) -> Iterator[_Entries | None]:
    """Every directory of the chain, each followed by its sub-directories; a loop ends, and gives None."""
    width = struct.calcsize(form.offset)
    file.seek(8 if form.big else 4)
    waiting = _unpack(form.offset, file.read(width))
    visited: set[int] = set()
    while waiting and len(visited) < MAX_DIRECTORIES:
        at = waiting.pop(0)
        if at >= form.size:
            form.beyond.append(at)
        if not 8 <= at < form.size or at in visited:
            continue
        visited.add(at)
        entries, following = _directory(file, form, at)
        yield entries
        if visited.intersection(following):
            yield None
        waiting = [*_integers(file, form, entries.get(SUB_DIRECTORIES), most=64), *following, *waiting]


def _directory(file: BinaryIO, form: _Form, at: int) -> tuple[_Entries, list[int]]:
    file.seek(at)
    counter = form.order + ("Q" if form.big else "H")
    count = (_unpack(counter, file.read(struct.calcsize(counter))) or [0])[0]
    if count > MAX_ENTRIES:
        return {}, []
    block = file.read(count * form.entry_bytes)
    entries: _Entries = {}
    for start in range(0, len(block) - form.entry_bytes + 1, form.entry_bytes):
        tag, kind = struct.unpack_from(form.order + "HH", block, start)
        if tag in _WANTED:
            (number,) = struct.unpack_from(form.offset, block, start + 4)
            entries[tag] = kind, number, block[start + 4 + struct.calcsize(form.offset) : start + form.entry_bytes]
    following = _unpack(form.offset, file.read(struct.calcsize(form.offset)))
    if not following:  # the file ends in the directory itself
        form.beyond.append(form.size)
    return entries, following


def _unpack(code: str, data: bytes) -> list[int]:
    return list(struct.unpack(code, data)) if len(data) == struct.calcsize(code) else []


def _value(file: BinaryIO, form: _Form, entry: tuple[int, int, bytes], most: int) -> bytes:
    kind, count, inline = entry
    length = _SIZES.get(kind, 1) * count
    if length <= len(inline):
        return inline[:length]
    (at,) = struct.unpack(form.offset, inline)
    if at >= form.size:
        return b""
    file.seek(at)
    return file.read(min(length, most))


def _integers(file: BinaryIO, form: _Form, entry: tuple[int, int, bytes] | None, *, most: int = 1) -> list[int]:
    if entry is None or entry[0] not in _FORMATS:
        return []
    code = _FORMATS[entry[0]]
    data = _value(file, form, entry, most * struct.calcsize(code))
    count = min(len(data) // struct.calcsize(code), most)
    return list(struct.unpack(f"{form.order}{count}{code}", data[: count * struct.calcsize(code)]))


def _text(file: BinaryIO, form: _Form, entries: _Entries, tag: int) -> str:
    entry = entries.get(tag)
    return "" if entry is None else _value(file, form, entry, MAX_TEXT).decode("utf-8", errors="replace")


def _vendor(file: BinaryIO, form: _Form, entries: _Entries) -> str:
    """Scanners whose TIFFs have a layout of their own: OpenSlide knows where label and macro lie in them."""
    description, software = _text(file, form, entries, DESCRIPTION), _text(file, form, entries, SOFTWARE)
    marks = {
        "Aperio": description.startswith("Aperio"),
        "Hamamatsu": HAMAMATSU in entries,
        "Philips": software.startswith("Philips") or "DPUfsImport" in description,
        "Leica": "http://www.leica-microsystems.com/scn/" in description,
        "Ventana": "iScan" in _text(file, form, entries, XMP),
        "Trestle": software.startswith("MedScan"),
        "Huron": description.startswith("Source = Bright Field"),
        "Akoya": "<PerkinElmer-QPI-ImageDescription>" in description,
    }
    return next((name for name, marked in marks.items() if marked), "")


def _objection(file: BinaryIO, form: _Form, entries: _Entries, number: int) -> str:
    width, height, samples, bits = (
        (_integers(file, form, entries.get(tag)) or [default])[0]
        for tag, default in ((TILE_WIDTH, 0), (TILE_LENGTH, 0), (SAMPLES, 1), (BITS, 8))
    )
    size = width * height * max(samples, 1) * max(bits, 1) // 8
    if size <= MAX_TILE_BYTES:
        too_few = _too_few_tiles(file, form, entries, number, width, height)
        too_long = _too_long_tiles(file, form, entries, number)
        return too_few or too_long or _too_short_tiles(file, form, entries, number, size)
    return (
        f"a tile of its image {number} claims {width:,} x {height:,} px ({size / 2**20:,.0f} MiB, "
        f"at most {MAX_TILE_BYTES // 2**20} MiB, since a tile is decoded whole)"
    )


def _too_few_tiles(file: BinaryIO, form: _Form, entries: _Entries, number: int, width: int, height: int) -> str:
    """Dimensions that the directory's own list of tiles does not back would be read for hours, tile by missing tile."""
    if width < 1 or height < 1 or TILE_OFFSETS not in entries:
        return ""
    image_w, image_h = ((_integers(file, form, entries.get(tag)) or [0])[0] for tag in (WIDTH, LENGTH))
    needed, listed = -(-image_w // width) * -(-image_h // height), entries[TILE_OFFSETS][1]
    if listed >= needed:
        return ""
    return (
        f"its image {number} claims {image_w:,} x {image_h:,} px, which need {needed:,} tiles, "
        f"but its directory lists {listed:,}"
    )


def _too_long_tiles(file: BinaryIO, form: _Form, entries: _Entries, number: int) -> str:
    """libtiff makes room for as many bytes as a tile claims, in every thread, before it sees that they are missing."""
    longest = max(_integers(file, form, entries.get(TILE_COUNTS), most=MAX_TILES), default=0)
    if longest <= MAX_TILE_BYTES:
        return ""
    return (
        f"a tile of its image {number} claims {longest / 2**20:,.0f} MiB in the file, "
        f"at most {MAX_TILE_BYTES // 2**20} MiB, which it may have when it is decoded"
    )


def _too_short_tiles(file: BinaryIO, form: _Form, entries: _Entries, number: int, size: int) -> str:
    """Tiles that cannot hold the raw pixels that the directory claims would be shown as noise: they are compressed."""
    compression = (_integers(file, form, entries.get(COMPRESSION)) or [RAW])[0]
    separate = (_integers(file, form, entries.get(PLANAR)) or [1])[0] != 1
    counts = [count for count in _integers(file, form, entries.get(TILE_COUNTS), most=LOOKED_AT) if count]
    if compression != RAW or separate or not counts or max(counts) >= size:
        return ""
    return f"its image {number} claims tiles of {size:,} uncompressed bytes, but they have {max(counts):,} at most"


def _has_gaps(file: BinaryIO, form: _Form, entries: _Entries) -> bool:
    offsets, counts = (_integers(file, form, entries.get(tag), most=MAX_TILES) for tag in (TILE_OFFSETS, TILE_COUNTS))
    return any(count == 0 or at + count > form.size for at, count in zip(offsets, counts, strict=False))
