"""Damage that knows the format: directories of a TIFF, chunks of a PNG, segments of a JPEG, metadata of Zarr, DICOM."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from benchmarks.fuzz.damage import WORDS, as_json, damaged_bytes, damaged_tree, lost_sectors

TAGS = [254, 256, 257, 258, 259, 262, 270, 273, 274, 277, 278, 279, 282, 284, 296, 317, 322, 323, 324, 325, 330, 338,
        339, 347, 530, 532, 700, 33003, 65420, 0, 65535]  # fmt: skip
OFFSETS = (273, 324)
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@dataclass
class Layout:
    """Where a TIFF may be cut, its directory entries and the links between its directories, as offsets."""

    order: str
    big: bool
    cuts: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    links: list[int] = field(default_factory=list)

    @property
    def word(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def word_bytes(self) -> int:
        return 8 if self.big else 4

    def number(self, data: bytes | bytearray, at: int) -> int:
        return int(struct.unpack_from(self.word, data, at)[0])


@lru_cache(maxsize=4)
def layout_of(data: bytes) -> Layout:
    """The layout of a sound TIFF."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack(order + "H", data[2:4])[0] == 43
    made = Layout(order, big)
    made.links.append(8 if big else 4)
    cuts = {0, 2, 4, 8, 16}
    at = made.number(data, made.links[0])
    while at and at + 8 < len(data) and len(made.links) < 20:
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
        first, width = at + (8 if big else 2), 20 if big else 12
        cuts |= {at, first}
        for entry in range(first, first + min(count, 100) * width, width):
            made.entries.append(entry)
            cuts |= {entry, entry + 2, entry + 4, entry + 8, entry + width, *_cuts_of(data, made, entry)}
        made.links.append(first + count * width)
        at = made.number(data, made.links[-1])
    made.cuts = sorted(c + d for c in cuts for d in (-1, 0, 1) if 0 <= c + d < len(data))
    return made


def _cuts_of(data: bytes, made: Layout, entry: int) -> set[int]:
    tag, kind, count = _entry(data, made, entry)
    length = SIZES.get(kind, 1) * count
    if length <= made.word_bytes:
        return set()
    place = made.number(data, entry + 4 + made.word_bytes)
    cuts = {place, place + length // 2, place + length}
    if tag in OFFSETS and kind in (4, 16):
        step = SIZES[kind]
        stop = min(place + length, len(data) - step)
        cuts |= {int.from_bytes(data[p : p + step], "little" if made.order == "<" else "big")
                 for p in range(place, stop, step)}  # fmt: skip
    return cuts


def _entry(data: bytes | bytearray, made: Layout, entry: int) -> tuple[int, int, int]:
    tag, kind, count = struct.unpack_from(made.order + ("HHQ" if made.big else "HHI"), data, entry)
    return tag, kind, count


def damaged_tiff(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Cut at a boundary, or one to three entries or links of its directories changed."""
    made = layout_of(data)
    if rng.random() < 0.2:
        cut = rng.choice(made.cuts)
        return data[:cut], f"cut at the boundary {cut}"
    buf = bytearray(data)
    said = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        entry = rng.choice(made.entries)
        what = rng.choice(["tag", "type", "count", "value", "value", "value", "near", "link", "array"])
        spot = entry + 4 + made.word_bytes
        said.append(f"{what} of tag {_entry(buf, made, entry)[0]}")
        odd = rng.choice([*WORDS, len(data), len(data) - 1, len(data) - 100, 60000, 100_000])
        if what == "tag":
            struct.pack_into(made.order + "H", buf, entry, rng.choice(TAGS))
        elif what == "type":
            struct.pack_into(made.order + "H", buf, entry + 2, rng.choice([0, 1, 2, 3, 4, 5, 7, 12, 13, 16, 99, 65535]))
        elif what == "count":
            struct.pack_into(made.word, buf, entry + 4, odd)
        elif what == "value":
            struct.pack_into(made.word, buf, spot, odd)
        elif what == "near":
            old = made.number(buf, spot)
            new = (old + rng.choice([-1, 1, -16, 16, old])) % 2 ** (8 * made.word_bytes)
            struct.pack_into(made.word, buf, spot, new)
        elif what == "link":
            struct.pack_into(made.word, buf, rng.choice(made.links), rng.choice([made.links[0], entry - 2, odd]))
        else:  # a value of an array elsewhere, such as one tile's offset or byte count
            place = made.number(buf, spot) + 4 * rng.randrange(8)
            if place + 4 < len(buf):
                struct.pack_into(made.order + "I", buf, place, odd % 2**32)
    return bytes(buf), "; ".join(said)


def damaged_png(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Chunks dropped, doubled, swapped or changed, each with the checksum that it should have."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    what = rng.choice(["size", "depth", "drop", "swap", "text", "twice", "half", "body"])
    place = rng.randrange(len(chunks))
    if what == "size":
        sides = [(0, 0), (1, 2**31 - 1), (60000, 60000), (10000, 12000), (513, 384), (512, 600), (512, 100)]
        chunks[0][1] = struct.pack(">II", *rng.choice(sides)) + chunks[0][1][8:]
    elif what == "depth":
        kind = [rng.choice([1, 2, 4, 8, 16]), rng.choice([0, 2, 3, 4, 6, 7]), 0, 0, rng.choice([0, 1])]
        chunks[0][1] = chunks[0][1][:8] + bytes(kind)
    elif what == "drop":
        del chunks[place]
    elif what == "swap":
        other = rng.randrange(len(chunks))
        chunks[place], chunks[other] = chunks[other], chunks[place]
    elif what == "text":
        chunks.insert(1, [b"zTXt", b"x\0\0" + _bomb()])
    elif what == "twice":
        chunks.insert(place, list(chunks[place]))
    elif what == "half":
        chunks[place][1] = chunks[place][1][: len(chunks[place][1]) // 2]
    else:
        chunks[place][1] = damaged_bytes(chunks[place][1], rng)[0]
    body = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:8] + b"".join(body), f"png {what}"


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    return zlib.compress(bytes(20 * 2**20), 1)


def damaged_jpeg(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A segment dropped, or its marker, length, sizes or first bytes changed."""
    buf = bytearray(data)
    known = (0xC0, 0xC2, 0xC4, 0xDB, 0xDA, 0xDD, 0xE0, 0xE1)
    marks = [i for i in range(len(buf) - 10) if buf[i] == 0xFF and buf[i + 1] in known]
    at = rng.choice(marks)
    what = rng.choice(["size", "drop", "length", "mark", "body", "end"])
    if what == "size":
        frame = next(i for i in marks if buf[i + 1] in (0xC0, 0xC2))
        sides = rng.choice([0, 1, 100, 513, 600, 10_000, 65535]), rng.choice([1, 100, 512, 600, 12_000, 65535])
        struct.pack_into(">HH", buf, frame + 5, *sides)
    elif what == "drop":
        del buf[at : at + 2 + int.from_bytes(buf[at + 2 : at + 4], "big")]
    elif what == "length":
        struct.pack_into(">H", buf, at + 2, rng.choice([0, 1, 2, 3, 65535]))
    elif what == "mark":
        buf[at + 1] = rng.choice([0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xDA, 0xD8, 0xD9, 0xFE, 0x00])
    elif what == "end":
        del buf[-rng.choice([2, 3, 10, 1000]) :]
    else:
        buf[at + 4 : at + 40] = damaged_bytes(bytes(buf[at + 4 : at + 40]), rng)[0]
    return bytes(buf), f"jpeg {what}"


# -------------------------------------------------------------------------------------------- folders


def damaged_folder(source: Path, target: Path, rng: random.Random) -> tuple[str, str]:
    """A copy of a folder with one file, or the tree of its metadata, damaged: (kind of damage, what was done)."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    trees = [path for path in files if path.suffix == ".json" or path.name.startswith(".z")]
    if trees and rng.random() < 0.6:
        file = rng.choice(trees)
        if rng.random() < 0.8:
            tree, said = damaged_tree(json.loads(file.read_text()), rng)
            file.write_bytes(as_json(tree))
            return "structure", f"{file.relative_to(target)}: {said}"
    else:
        file = rng.choice([path for path in files if path not in trees])
        if rng.random() < 0.1:
            file.unlink()
            return "structure", f"{file.relative_to(target)} deleted"
        if file.suffix == ".dcm" and rng.random() < 0.5:
            with contextlib.suppress(Exception):  # a change that pydicom will not write
                return "structure", _damage_dicom(file, rng)
    if rng.random() < 0.3:
        (data, said), kind = lost_sectors(file.read_bytes(), rng), "sectors"
    else:
        (data, said), kind = damaged_bytes(file.read_bytes(), rng), "bytes"
    file.write_bytes(data)
    return kind, f"{file.relative_to(target)}: {said}"


def _damage_dicom(file: Path, rng: random.Random) -> str:
    import pydicom

    data = pydicom.dcmread(file)
    names = [element.keyword for element in data if element.keyword and element.keyword != "PixelData"]
    sizes = ["Rows", "Columns", "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "NumberOfFrames"]
    name = rng.choice(names + sizes * 4)
    if rng.random() < 0.3:
        del data[name]
    else:
        value = getattr(data, name, 0)
        odd = (
            rng.choice([0, 1, 17, 65535, 2**31 - 1]) if isinstance(value, int) else rng.choice(["", "x" * 70, "1.2.3"])
        )
        setattr(data, name, min(odd, 65535) if name in ("Rows", "Columns") else odd)
    data.save_as(file)
    return f"{file.name}: {name}"
