"""What the reader fastslide does where fastslide itself fails: another reader takes over, part by part, and is named.

A stand-in for the package reads TIFFs with tifffile and fails where it is told to: the package need not be there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tilers import TileStream, find_foreground, open_slide, plan_tiles
from tilers.readers import fastslide as reader
from wsi_chat.analysis.provenance import run_notes
from wsi_chat.errors import SlideUnreadable
from wsi_chat.remarks import Remark
from wsi_chat.settings import Settings

from .conftest import textured, write_tiff

SIDE = 1100
Box = tuple[int, int, int, int]


@dataclass
class Package:
    """The stand-in. ``bad``: x0, y0, x1, y1 of level 0 that it cannot read; ``kind``: how it fails."""

    bad: list[Box] = field(default_factory=list)
    kind: Callable[[], Any] = lambda: RuntimeError("JPEG: bad Huffman code")
    asked: list[Box] = field(default_factory=list)
    closed: int = 0

    def from_file_path(self, path: str) -> Any:
        with tifffile.TiffFile(path) as file:
            levels = [page.asarray() for page in file.pages]
        return SimpleNamespace(
            properties={}, format="Generic TIFF", mpp=(0.5, 0.5), z_count=1, dtype=np.dtype(np.uint8),
            level_dimensions=[level.shape[1::-1] for level in levels],
            level_downsamples=[levels[0].shape[0] / level.shape[0] for level in levels],
            read_region=lambda *, location, level, size, z: self._read(levels, location, level, size),
            close=self._close,
        )  # fmt: skip

    def _read(self, levels: list[Any], location: tuple[int, int], level: int, size: tuple[int, int]) -> Any:
        (x, y), (w, h) = location, size
        self.asked.append((x, y, x + w, y + h))
        scale = levels[0].shape[0] / levels[level].shape[0]
        if any(
            x * scale < x1 and x0 < (x + w) * scale and y * scale < y1 and y0 < (y + h) * scale
            for x0, y0, x1, y1 in self.bad
        ):
            fault = self.kind()
            if isinstance(fault, BaseException):
                raise fault
            return SimpleNamespace(numpy=lambda: fault)
        return SimpleNamespace(numpy=lambda: levels[level][y : y + h, x : x + w])

    def _close(self) -> None:
        self.closed += 1


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    module, stand_in = ModuleType("fastslide"), Package()
    module.FastSlide = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastslide", module)
    return stand_in


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("fast") / "a.tiff", textured(SIDE, SIDE), levels=2)


def _damaged(monkeypatch: pytest.MonkeyPatch, bad: Box) -> None:
    """The other reader fails there as well."""
    from tilers.readers.tiff import TiffBackend

    real = TiffBackend.plane_window

    def read(self: Any, plane: int, level: int, x: int, y: int, width: int, height: int) -> Any:
        if x < bad[2] and bad[0] < x + width and y < bad[3] and bad[1] < y + height:
            raise OSError("damaged")
        return real(self, plane, level, x, y, width, height)

    monkeypatch.setattr(TiffBackend, "plane_window", read)


def test_a_sound_slide_is_read_by_fastslide_alone(package: Package, path: Path) -> None:
    with open_slide(path, reader="fastslide") as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, SIDE, SIDE), textured(SIDE, SIDE))
        assert slide.reading_notes == ()
        assert slide._backend._other is None  # type: ignore[attr-defined]
    assert package.asked == [(0, 0, SIDE, SIDE)]
    assert package.closed == 1


@pytest.mark.parametrize(
    "kind",
    [
        lambda: RuntimeError("JPEG: bad Huffman code"),
        lambda: OSError("short read"),
        lambda: np.zeros((3, 3, 3), np.uint8),  # fewer pixels than asked for
        lambda: np.zeros((256, 256, 4), np.uint8),
        lambda: np.zeros((256, 256, 3), np.uint16),
    ],
)
def test_only_the_parts_that_fastslide_cannot_read_come_from_another_reader(
    package: Package, path: Path, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    package.bad, package.kind = [(300, 300, 310, 310), (1000, 20, 1001, 21)], kind
    with open_slide(path, reader="fastslide") as slide:
        plan = plan_tiles(slide, find_foreground(slide, mask=False), tile_px=256, mpp=0.5, overlap=0.25)
        with TileStream(slide, plan, workers=2) as patches:
            for patch in patches:
                x, y = patch.tile.x, patch.tile.y
                assert patch.status == "ok"
                assert np.array_equal(patch.pixels, textured(SIDE, SIDE)[y : y + 256, x : x + 256])  # type: ignore[arg-type]
        (note,) = slide.reading_notes
        assert (note.code, note.fields["reader"]) == ("slide.read_otherwise", "tiff")
        # each place lies in at most four tiles (overlap), each of which is at most four parts of a block
        assert 2 <= int(note.fields["n"]) <= 8  # type: ignore[arg-type]
        notes = run_notes(slide, find_foreground(slide, mask=False), plan, Settings())
        assert note in notes
        assert str(note).startswith(f"fastslide could not read {note.fields['n']} parts of the slide")
    assert caplog.text.count("tiff reads it instead") == 1


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some.tuples(*[some.integers(0, SIDE - 1)] * 2, *[some.integers(1, SIDE)] * 2),
    some.lists(some.tuples(*[some.integers(0, SIDE - 1)] * 2), max_size=3),
    some.integers(0, 1),
)
def test_any_region_comes_out_the_same_whatever_fastslide_cannot_read(
    package: Package, path: Path, region: Box, places: list[tuple[int, int]], level: int
) -> None:
    package.bad = [(x, y, x + 1, y + 1) for x, y in places]
    x, y, w, h = region
    with open_slide(path, reader="fastslide") as slide, open_slide(path) as other:
        ours, theirs = (each.read_with_mask(x, y, level, w, h) for each in (slide, other))
        assert np.array_equal(ours[0], theirs[0])
        assert (ours[1] is None) == (theirs[1] is None)


def test_what_neither_can_read_is_unreadable_alone(
    package: Package, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = (300, 300, 310, 310)
    package.bad = [bad, (600, 600, 601, 601)]
    _damaged(monkeypatch, bad)
    with open_slide(path, reader="fastslide") as slide:
        plan = plan_tiles(slide, find_foreground(slide, mask=False), tile_px=256, mpp=0.5, overlap=0.0)
        with TileStream(slide, plan, workers=2) as patches:
            found = {(patch.tile.x, patch.tile.y): patch for patch in patches}
        lost = [at for at, patch in found.items() if patch.status == "unreadable"]
        assert lost == [(256, 256)]
        assert "bad Huffman code" in found[256, 256].error
        assert found[512, 512].status == "ok"
        with pytest.raises(SlideUnreadable, match="bad Huffman code"):
            slide.read_region(300, 300, 0, 20, 20)
        assert slide.reading_notes[0].fields["reader"] == "tiff"


def test_no_other_reader_is_asked_that_shows_other_levels(
    package: Package, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.bad = [(300, 300, 310, 310)]
    opened = []

    class Odd:
        level_sizes, level_downsamples, planes = [(SIDE, SIDE)], [1.0], 1

        def close(self) -> None:
            opened.append("closed")

    def broken(_: Path) -> Any:
        raise RuntimeError("a plugin may raise anything")

    readers = [SimpleNamespace(name="broken", open=broken), SimpleNamespace(name="odd", open=lambda _: Odd())]
    monkeypatch.setattr(reader, "candidates", lambda _: readers)
    with open_slide(path, reader="fastslide") as slide:
        with pytest.raises(SlideUnreadable, match="bad Huffman code"):
            slide.read_region(256, 256, 0, 256, 256)
        assert slide.reading_notes == ()
    assert opened
    assert set(opened) == {"closed"}


def test_memory_that_runs_out_is_no_damage(package: Package, path: Path) -> None:
    package.bad, package.kind = [(0, 0, 1, 1)], lambda: MemoryError()
    with open_slide(path, reader="fastslide") as slide:
        with pytest.raises(MemoryError):
            slide.read_region(0, 0, 0, 300, 300)
        assert slide.reading_notes == ()


def test_threads_share_the_other_reader_one_after_the_other(package: Package, path: Path) -> None:
    package.bad = [(0, 0, SIDE, SIDE)]
    with open_slide(path, reader="fastslide") as slide:
        wrong: list[Any] = []

        def read(seed: int) -> None:
            for x, y in np.random.default_rng(seed).integers(0, SIDE - 64, (20, 2)).tolist():
                if not np.array_equal(slide.read_region(x, y, 0, 64, 64), textured(SIDE, SIDE)[y : y + 64, x : x + 64]):
                    wrong.append((x, y))

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert slide.reading_notes == (Remark("slide.read_otherwise", n=80, reader="tiff"),)
