"""Damaged slides through everything that reads one: opened, recorded, masked, planned, streamed, shown as a whole."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.fuzz import strict
from benchmarks.fuzz.damage import damaged_bytes, lost_sectors
from benchmarks.fuzz.pool import Row
from benchmarks.fuzz.structure import damaged_folder, damaged_jpeg, damaged_png, damaged_tiff
from tilers import TileStream, find_foreground, open_slide, plan_tiles
from tilers.slide import Slide
from tilers.stream import resample
from wsi_chat.errors import WsiChatError
from wsi_chat.schema import Tile

TILE_PX, LIMIT, MPP = 96, 16, 0.5
SAME = 2  # grey levels between two decoders
WEIGHTS = {"aperio.svs": 2.0, "jpeg.tiff": 3.0, "plain.png": 2.0, "jp2k.tiff": 0.5, "dicom": 0.3, "fields": 0.2,
           "scan.svs": 0.05}  # fmt: skip
ZARR_WEIGHT = 0.05  # each takes as long as ten of the others


def targets(seeds: Path) -> dict[str, float]:
    """Every sound slide by name, with its share of the cases."""
    names = sorted(path.name for path in (seeds / "slides").iterdir())
    return {name: WEIGHTS.get(name, ZARR_WEIGHT if name.endswith(".zarr") else 1.0) for name in names}


def prepare(name: str, seeds: Path) -> Callable[[random.Random, int, Path], Row]:
    """What does one case of a target."""
    cv2.setNumThreads(1)
    sound = Sound(seeds / "slides" / name)

    def case(rng: random.Random, number: int, scratch: Path) -> Row:
        path, kind, said = make(sound.path, sound.data, rng, scratch)
        told: Row = {"damage": kind, "said": said}
        try:
            return told | examine(path, sound)
        except BaseException as error:
            error.fuzz = told  # type: ignore[attr-defined]  # its row says what was done
            raise

    return case


def make(seed: Path, data: bytes, rng: random.Random, scratch: Path) -> tuple[Path, str, str]:
    """A damaged copy of a slide: where it lies, the kind of damage, and what was done."""
    if seed.is_dir():
        place = scratch / seed.name
        kind, said = damaged_folder(seed, place, rng)
        return (place / "boxes_0.dcm" if (place / "boxes_0.dcm").exists() else place), kind, said
    place = scratch / seed.name
    tell = {b"II": damaged_tiff, b"MM": damaged_tiff, b"\x89P": damaged_png, b"\xff\xd8": damaged_jpeg}.get(data[:2])
    kind = rng.choice(
        ["structure", "structure", "bytes", "bytes", "sectors"] if tell else ["bytes", "bytes", "sectors"]
    )
    damage = {"structure": tell or damaged_bytes, "bytes": damaged_bytes, "sectors": lost_sectors}[kind]
    made, said = damage(data, rng)
    place.write_bytes(made)
    return place, kind, said


class Sound:
    """A sound slide, and its tiles as they should be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes() if path.is_file() else b""
        self.slide = _open(path / "boxes_0.dcm" if (path / "boxes_0.dcm").exists() else path)
        self._tiles: dict[tuple[Any, ...], NDArray[np.uint8]] = {}

    def tile(self, tile: Tile) -> NDArray[np.uint8]:
        """(out_px, out_px, 3) pixels of a tile of a slide with the same levels."""
        key = (tile.x, tile.y, tile.level, tile.read_px, tile.out_px)
        if key not in self._tiles:
            read = self.slide.read_region(tile.x, tile.y, tile.level, *tile.read_px)
            self._tiles[key] = resample(read, tile.out_px)
        return self._tiles[key]


def _open(path: Path) -> Slide:
    slide = open_slide(path)
    if slide.mpp is None:
        slide.close()
        slide = open_slide(path, mpp=MPP)
    return slide


def _opens(path: Path) -> bool:
    try:
        _open(path).close()
    except WsiChatError:
        return False
    return True


def examine(path: Path, sound: Sound) -> Row:
    """Read a damaged slide whole; compare what is called sound with the sound slide.

    Raises what the readers raise.
    """
    with _open(path) as slide:
        json.dumps(slide.record("x").model_dump(mode="json"), allow_nan=False)
        plan = plan_tiles(
            slide, find_foreground(slide), tile_px=TILE_PX, mpp=max(MPP, slide.require_mpp()), limit=LIMIT
        )
        alike = slide.level_sizes == sound.slide.level_sizes
        lost, changed = 0, []
        with TileStream(slide, plan, workers=1) as stream:
            for patch in stream:
                if patch.status != "ok" or patch.pixels is None:
                    lost += 1
                    continue
                if patch.pixels.shape != (TILE_PX, TILE_PX, 3):
                    raise AssertionError(f"a tile of {patch.pixels.shape}")
                if not alike or _differs(patch.pixels, sound.tile(patch.tile)):
                    changed.append(patch.tile)
        slide.overview(256)
    return _outcome(path, changed, lost, alike, sound)


def _differs(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    return not np.array_equal(one, other) and int(np.abs(one.astype(np.int16) - other).max()) > SAME


def _outcome(path: Path, changed: Sequence[Tile], lost: int, alike: bool, sound: Sound) -> Row:
    told: Row = {"lost": lost, "changed": len(changed)} if lost or changed else {}
    if changed and (path.is_file() or path.name == "fields"):
        spots = [(tile.x, tile.y, tile.level, tile.read_px[0]) for tile in changed]
        # of photographs those that the program gives for sound: what it refuses is among the lost tiles
        files = [file for file in sorted(path.iterdir()) if _opens(file)] if path.is_dir() else [path]
        if said := next((said for file in files if (said := strict.objection(file, spots, sound.data))), ""):
            return {**told, "outcome": "wrong", "kind": said}
    if lost:
        return {**told, "outcome": "partial"}
    return {**told, "outcome": ("undetectable" if alike else "resized")} if changed else told
