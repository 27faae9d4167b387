"""Slides made for these tests: pyramidal TIFFs, drawn cells, and a backend in memory that can fail on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from tilers.readers import Pixels, Resolution, WindowBackend, register_reader, unregister_reader
from tilers.slide import Slide

Array = NDArray[np.uint8]
GLASS = (238, 236, 240)
STAIN = (110, 60, 140)


def draw_cells(width: int, height: int, centers: Sequence[tuple[int, int]], *, radius: int = 10) -> Array:
    """Glass with a little noise and discs of stain."""
    rng = np.random.default_rng(7)
    image = np.uint8(GLASS) - rng.integers(0, 5, (height, width, 1), np.uint8) + np.uint8(2)
    for x, y in centers:
        y0, y1, x0, x1 = max(0, y - radius), y + radius + 1, max(0, x - radius), x + radius + 1
        yy, xx = np.mgrid[y0 : min(y1, height), x0 : min(x1, width)]
        image[y0:y1, x0:x1][(xx - x) ** 2 + (yy - y) ** 2 <= radius**2] = STAIN
    return image


def textured(width: int, height: int, seed: int = 3) -> Array:
    """An image in which no two places look alike, so that a shifted read is noticed."""
    yy, xx = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 60, (height, width))
    return np.stack([xx % 196 + noise, yy % 196 + noise, (xx // 7 + yy // 5) % 196 + noise], axis=2).astype(np.uint8)


def halved(image: Array) -> Array:
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean(axis=(1, 3)).astype(np.uint8)


def write_tiff(
    path: Path,
    image: Array,
    *,
    mpp: float | None = 0.5,
    levels: int = 1,
    tile: int | None = 256,
    compression: str | None = "deflate",
) -> Path:
    """A (pyramidal) tiled TIFF as OpenSlide's generic driver reads it; ``tile=None`` writes one strip."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    shape = {} if tile is None else {"tile": (tile, tile)}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            writer.write(
                image, photometric="rgb", compression=compression, subfiletype=int(level > 0),
                metadata=None, **shape, **(resolution if level == 0 else {}),
            )  # fmt: skip
            image = halved(image)
    return path


@pytest.fixture
def tiff(tmp_path: Path) -> Callable[..., Path]:
    """Write a TIFF slide into the test's folder: ``tiff("a.tiff", image, mpp=0.5, levels=3)``."""

    def write(name: str, image: Array, **options: object) -> Path:
        return write_tiff(tmp_path / name, image, **options)  # type: ignore[arg-type]

    return write


@dataclass
class Faults:
    """What a MemoryBackend does wrong, shared by all of its handles, and what was asked of it."""

    bad: Callable[[int, int, int, int], bool] = lambda x, y, w, h: False
    most_bytes: int | None = None
    fail_opening: bool = False
    once: int = 0  # reads that fail on a handle's first use and then never again
    opened: int = 0
    closed: int = 0
    largest: int = 0
    reads: list[tuple[int, int, int, int]] = field(default_factory=list)


class MemoryBackend(WindowBackend):
    """An image in memory with OpenSlide's habit: after one failure the handle is dead."""

    def __init__(self, levels: Sequence[Array], faults: Faults, mpp: float | None) -> None:
        if faults.fail_opening and faults.opened:
            raise OSError("the disk went away")
        faults.opened += 1
        self.levels, self.faults, self.dead = levels, faults, ""
        self.level_sizes = [(a.shape[1], a.shape[0]) for a in levels]
        self.level_downsamples = [levels[0].shape[1] / a.shape[1] for a in levels]
        self.resolutions = () if mpp is None else (Resolution(mpp, mpp, "test"),)

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        faults = self.faults
        faults.reads.append((x, y, width, height))
        faults.largest = max(faults.largest, width * height)
        if faults.most_bytes is not None and width * height * 11 > faults.most_bytes:
            raise AssertionError(f"{width} x {height} px read at once")
        if faults.once:
            faults.once -= 1
            self.dead = "a hiccup"
        if faults.bad(x, y, width, height):
            self.dead = "damaged tile"
        if self.dead:
            raise OSError(self.dead)
        return self.levels[level][y : y + height, x : x + width]

    def close(self) -> None:
        self.faults.closed += 1


@pytest.fixture
def memory_slide(tmp_path: Path) -> Iterator[Callable[..., tuple[Slide, Faults]]]:
    """Make an open slide from arrays: ``slide, faults = memory_slide(image, levels=2, mpp=0.5)``."""
    from tilers.opening import open_slide

    made: list[str] = []

    def make(image: Array, *, levels: int = 1, mpp: float | None = 0.5) -> tuple[Slide, Faults]:
        faults = Faults()
        pyramid = [image]
        for _ in range(levels - 1):
            pyramid.append(halved(pyramid[-1]))
        name = f"memory{len(made)}"
        made.append(name)
        register_reader(name, lambda path: MemoryBackend(pyramid, faults, mpp))
        path = tmp_path / f"{name}.mem"
        path.write_bytes(b"in memory")
        return open_slide(path, reader=name), faults

    yield make
    for name in made:
        unregister_reader(name)
