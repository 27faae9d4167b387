"""Frames of DICOM slides decoded directly: OpenSlide's pixels, whatever table and layout, and no damage passed over."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tilers import dicom, open_slide, opening
from tilers.readers import Pixels
from tilers.readers.dicom_frames import FrameFile, FrameLevel
from tilers.slide import Slide
from wsi_chat.errors import SlideUnreadable, SlideUnsupported

from .conftest import halved, textured
from .dicom_slides import TILE, frame_places, write_dicom

WIDTH, HEIGHT = 300, 200
ROWS, COLUMNS = 4, 5
DIRECT = "directly, strictly: 4 of 4 JPEG tiles tried are as OpenSlide shows them"
PIXEL_DATA = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"


@pytest.fixture
def template(shared_data: Path) -> Path:
    return shared_data / "slides" / "boxes_0.dcm"


def of_openslide(path: Path, x: int, y: int, level: int, width: int, height: int) -> Pixels:
    with openslide.OpenSlide(path) as slide:
        rgba = np.asarray(slide.read_region((x, y), level, (width, height)))
    return np.where(rgba[..., 3:] > 0, rgba[..., :3], 255).astype(np.uint8)


def tile_at(slide: Slide, row: int, column: int) -> Pixels | None:
    """A stored tile as it is shown, None where it is unreadable."""
    w, h = min(TILE, WIDTH - column * TILE), min(TILE, HEIGHT - row * TILE)
    try:
        return slide.read_region(column * TILE, row * TILE, 0, w, h)
    except SlideUnreadable:
        return None


@pytest.mark.parametrize(
    "how",
    [
        {"table": "basic"},
        {"table": "extended"},
        {"table": "none"},
        {"table": "pairs"},
        {"colours": "RGB"},
        {"sparse": [(0, 0), (3, 4), (2, 1), (1, 3)]},
        {"jpeg2000": True, "colours": "RGB"},
    ],
    ids=str,
)
def test_pixels_are_openslides(tmp_path: Path, template: Path, how: dict[str, object]) -> None:
    path = write_dicom(tmp_path / "a.dcm", template, textured(WIDTH, HEIGHT), **how)  # type: ignore[arg-type]
    with open_slide(path) as slide:
        assert slide.decoding == DIRECT
        assert slide.notes == ()
        for x, y, w, h in (
            (0, 0, WIDTH, HEIGHT),
            (50, 61, 90, 70),
            (-9, -7, 80, 80),
            (WIDTH - 20, HEIGHT - 30, 60, 60),
        ):
            assert np.array_equal(slide.read_region(x, y, 0, w, h), of_openslide(path, x, y, 0, w, h))
        if "sparse" in how:
            _, scanned = slide.read_with_mask(0, 0, 0, WIDTH, HEIGHT)
            assert scanned is not None
            assert scanned.sum() == 3 * TILE * TILE + (WIDTH - 4 * TILE) * (HEIGHT - 3 * TILE)


def test_each_level_is_found_in_its_file(tmp_path: Path, template: Path) -> None:
    image = textured(WIDTH, HEIGHT)
    write_dicom(tmp_path / "b.dcm", template, image, uid="1.2.3")
    path = write_dicom(tmp_path / "c.dcm", template, halved(image), uid="1.2.4")
    with open_slide(path) as slide:
        assert slide.level_sizes == ((WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2))
        assert slide.decoding == "directly, strictly: 8 of 8 JPEG tiles tried are as OpenSlide shows them"
        for level, w, h in ((0, WIDTH, HEIGHT), (1, WIDTH // 2, HEIGHT // 2)):
            assert np.array_equal(slide.read_region(0, 0, level, w, h), of_openslide(path, 0, 0, level, w, h))
        assert len(slide._backend._cache._pieces) == 20 + 6  # decoded here, none through OpenSlide


@contextmanager
def level_of(*paths: Path) -> Iterator[FrameLevel]:
    with ExitStack() as opened:
        files = [FrameFile(path) for path in paths]
        for file in files:
            opened.callback(file.close)
        yield FrameLevel(files)


def test_frames_of_a_concatenation_lie_one_after_the_other(tmp_path: Path, template: Path) -> None:
    """OpenSlide 4.0.1 refuses such a series, later versions read it."""
    image = textured(WIDTH, HEIGHT)
    write_dicom(tmp_path / "a.dcm", template, image)
    parts = [
        write_dicom(tmp_path / f"{n}.dcm", template, image, part=part, uid=f"1.2.3.{n}")
        for n, part in enumerate([(0, 7), (7, 20)])
    ]
    with level_of(tmp_path / "a.dcm") as whole, level_of(*parts) as joined, level_of(parts[1]) as half:
        assert not joined.gaps.any()
        for row in range(ROWS):
            for column in range(COLUMNS):
                assert np.array_equal(joined.decode(row, column), whole.decode(row, column))
        with pytest.raises(ValueError, match="no frame can be told to lie at row 2, column 2"):
            half.decode(1, 1)
        assert np.array_equal(half.decode(1, 2), whole.decode(1, 2))


@pytest.mark.parametrize("table", ["basic", "none"])
def test_what_is_left_over_of_a_frame_makes_it_unreadable(tmp_path: Path, template: Path, table: str) -> None:
    """Half of it lost to other data: OpenSlide stops after the last row of pixels and shows glass."""
    path = write_dicom(tmp_path / "a.dcm", template, textured(WIDTH, HEIGHT), table=table)
    data = bytearray(path.read_bytes())
    at, count = frame_places(bytes(data))[7]
    blank = io.BytesIO()
    Image.new("RGB", (TILE, TILE), "white").save(blank, "JPEG", quality=80)
    start = blank.getvalue()[:-2]
    data[at : at + count] = start + bytes([17] * (count - len(start) - 2)) + b"\xff\xd9"
    (tmp_path / "hurt").mkdir()
    hurt = tmp_path / "hurt" / "a.dcm"
    hurt.write_bytes(data)
    assert (of_openslide(hurt, 2 * TILE, TILE, 0, TILE, TILE) == 255).all()
    with open_slide(path) as sound, open_slide(hurt) as slide:
        assert slide.decoding.startswith("directly")
        for row in range(ROWS):
            for column in range(COLUMNS):
                shown = tile_at(slide, row, column)
                if (row, column) == (1, 2):
                    assert shown is None
                else:
                    assert np.array_equal(shown, tile_at(sound, row, column))


@pytest.mark.parametrize("table", ["basic", "none"])
def test_frames_that_a_full_slide_lacks_are_missing_and_no_glass(tmp_path: Path, template: Path, table: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", template, textured(WIDTH, HEIGHT), table=table, part=(0, 17))
    with open_slide(path) as slide:
        assert slide.decoding.startswith("directly")
        shown = [tile_at(slide, row, column) is not None for row in range(ROWS) for column in range(COLUMNS)]
    assert shown == [True] * 17 + [False] * 3


@pytest.mark.parametrize("second", [(0, 0), (0, COLUMNS)], ids=["twice the same place", "outside"])
def test_places_that_contradict_each_other_leave_no_place_for_unscanned(
    tmp_path: Path, template: Path, second: tuple[int, int]
) -> None:
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", template, textured(WIDTH, HEIGHT), sparse=[(0, 0), (1, 1), (2, 1), (1, 3)])
    data = pydicom.dcmread(path)
    place = data.PerFrameFunctionalGroupsSequence[1].PlanePositionSlideSequence[0]
    place.RowPositionInTotalImagePixelMatrix = second[0] * TILE + 1
    place.ColumnPositionInTotalImagePixelMatrix = second[1] * TILE + 1
    data.save_as(path)
    with open_slide(path) as slide:
        assert slide.decoding.startswith("directly")
        shown = {(r, c) for r in range(ROWS) for c in range(COLUMNS) if tile_at(slide, r, c) is not None}
    assert shown == {(2, 1), (1, 3)} | ({(0, 0)} if second != (0, 0) else set())


def test_a_format_that_is_not_checked_says_so(tmp_path: Path, template: Path) -> None:
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", template, textured(TILE, TILE))
    data = pydicom.dcmread(path)
    data.decompress()
    data.PhotometricInterpretation = "RGB"
    data.save_as(path)
    with open_slide(path) as slide:
        assert slide.decoding == "by OpenSlide; its frames are in the transfer syntax 1.2.840.10008.1.2.1, no JPEG"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.sampled_from(["basic", "extended", "none", "pairs"]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 1, 8, 0x40, 0xFF])), min_size=1, max_size=3
    ),
    within=st.sampled_from(["table", "headers"]),
)
def test_no_frame_is_shown_in_the_place_of_another(
    tmp_path: Path, template: Path, table: str, changes: list[tuple[float, int]], within: str
) -> None:
    """Whatever becomes of the table of offsets and of the lengths of fragments: a frame is itself, or an error."""
    path = tmp_path / "a.dcm"
    write_dicom(path, template, textured(WIDTH, HEIGHT), table=table)
    data = bytearray(path.read_bytes())
    with level_of(path) as level:
        sound = [level.decode(*divmod(n, COLUMNS)) for n in range(ROWS * COLUMNS)]
    start = data.rindex(PIXEL_DATA) + len(PIXEL_DATA)
    items = frame_places(bytes(data))
    if within == "headers":
        spots = [at for first, _ in items for at in range(first - 8, first)]
    elif table == "extended":
        spots = [data.index(b"\xe0\x7f\x01\x00OV\x00\x00") + 12 + n for n in range(8 * ROWS * COLUMNS)]
    else:
        spots = list(range(start + 4, items[0][0] - 8))
    for where, change in changes:
        data[spots[int(where * len(spots))]] ^= change
    path.write_bytes(data)
    with suppress(SlideUnsupported), level_of(path) as hurt:
        for n, tile in enumerate(sound):
            with suppress(ValueError, OSError):
                assert np.array_equal(hurt.decode(*divmod(n, COLUMNS)), tile)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_in_its_folder_is_named_and_not_waited_for(tmp_path: Path, template: Path) -> None:
    """OpenSlide opens whatever lies beside a file of DICOM, and waited at the pipe for ever."""
    path = write_dicom(tmp_path / "a.dcm", template, textured(256, 256))
    os.mkfifo(tmp_path / "camera.svs")
    for slide in (path, tmp_path):
        with pytest.raises(SlideUnsupported, match=r"camera\.svs in its folder is no file") as caught:
            open_slide(slide, trial=False)
        assert caught.value.hint == "Move camera.svs out of the folder."
    (tmp_path / "camera.svs").unlink()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with open_slide(path, trial=False) as slide:
        assert slide.size == (256, 256)


def test_the_folder_is_searched_for_pipes_once_a_slide_and_not_for_each_handle(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dicom(tmp_path / "a.dcm", template, textured(256, 256))
    looked: list[Path] = []
    look = dicom.irregular_file
    for module in (dicom, opening):
        monkeypatch.setattr(module, "irregular_file", lambda folder: looked.append(folder) or look(folder))
    with open_slide(path, trial=False) as slide:
        assert looked == [tmp_path]
        for _ in range(2):
            again = slide._opener(path)  # as for a thread's own handle, or in place of one that failed
            assert again.level_sizes == slide.level_sizes
            again.close()
        assert looked == [tmp_path]
