"""Formats that need an optional reader or have none: what is read, and what the owner of a file is told."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import struct
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from tilers import TileStream, open_slide, plan_tiles
from tilers.readers import addons
from wsi_chat.errors import SlideError, SlideNotFound, SlideUnsupported

from .conftest import textured
from .kfb import write_kfb
from .test_omezarr import write_zarr


def test_kfb_slides_are_read_by_their_package(tmp_path: Path) -> None:
    pytest.importorskip("kfbslide", reason="the package kfbslide is optional and not installed")
    image = np.full((512, 768, 3), (200, 150, 180), np.uint8)
    image[100:180, 300:420] = (60, 40, 120)
    with open_slide(write_kfb(tmp_path / "a.kfb", image)) as slide:
        assert (slide.reader, slide.size, slide.vendor) == ("kfbslide", (768, 512), "kfbio")
        assert (slide.mpp, slide.mpp_source, slide.objective_power) == (0.5, "openslide.mpp-x", 20)
        patches = list(TileStream(slide, plan_tiles(slide, None, tile_px=256, mpp=0.5, overlap=0)))
        for patch in patches:
            t = patch.tile
            assert np.abs(patch.pixels.astype(int) - image[t.y : t.y + 256, t.x : t.x + 256]).max() <= 30  # JPEG
        assert "kfbio" not in " ".join(slide.properties)  # scan times and the like are not kept


@pytest.mark.parametrize(("suffix", "extra"), [(".kfb", "kfb"), (".sdpc", "sdpc"), (".mrxs", "mrxs")])
def test_a_missing_package_is_named_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, extra: str
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(addons, "import_module", missing)
    path = tmp_path / f"slide{suffix}"
    path.write_bytes(np.random.default_rng(1).bytes(4100))
    with pytest.raises(SlideUnsupported, match=rf"is not installed: pip install 'wsi-chat\[{extra}\]'") as caught:
        open_slide(path)
    assert f"pip install 'wsi-chat[{extra}]'" in caught.value.hint
    assert "convert it" in caught.value.hint


def test_a_package_that_does_not_find_its_libraries_says_how_it_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "opensdpc"
    (package / "LINUX" / "jpeg").mkdir(parents=True)
    (package / "__init__.py").write_text("raise OSError('libjpeg.so.8: cannot open shared object file')")
    (package / "LINUX" / "jpeg" / "libjpeg.so.8").touch()
    (package / "LINUX" / "libDecodeSdpc.so").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "opensdpc", raising=False)
    path = tmp_path / "slide.sdpc"
    path.write_bytes(b"x" * 100)
    with pytest.raises(SlideUnsupported, match="opensdpc cannot be loaded: libjpeg") as caught:
        open_slide(path)
    assert f"LD_LIBRARY_PATH={package / 'LINUX'}:{package / 'LINUX' / 'jpeg'}" in caught.value.message


class OldSdpc:
    """As opensdpc 1.0.0 has it: no properties, levels by a scale below 1, and pixels only inside a level."""

    def __init__(self, path: str) -> None:
        self.image = textured(600, 400)
        self.levels = [self.image, np.ascontiguousarray(self.image[::4, ::4])]
        self.level_dimensions = tuple((a.shape[1], a.shape[0]) for a in self.levels)
        self.level_downsamples = ((1 / 0.25) ** 0, (1 / 0.25) ** 1)
        self.scan_magnification = 40
        head = SimpleNamespace(contents=SimpleNamespace(ruler=0.1725))
        self.sdpc = SimpleNamespace(contents=SimpleNamespace(picHead=head))

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        x, y = (int(at / self.level_downsamples[level]) for at in location)
        width, height = self.level_dimensions[level]
        assert 0 <= x <= width - size[0], "beyond the edge its library reads memory that is not its own"
        assert 0 <= y <= height - size[1]
        return Image.fromarray(self.levels[level][y : y + size[1], x : x + size[0]])

    def close(self) -> None:
        """As there."""


def test_sdpc_as_its_package_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addons, "import_module", lambda name: SimpleNamespace(OpenSdpc=OldSdpc))
    path = tmp_path / "slide.sdpc"
    path.write_bytes(b"SQ" + bytes(100))
    with open_slide(path) as slide:
        assert (slide.reader, slide.size, slide.mpp, slide.mpp_source) == ("opensdpc", (600, 400), 0.1725, "sdpc ruler")
        assert (slide.objective_power, slide.level_downsamples) == (40, (1.0, 4.0))
        got = slide.read_region(500, 300, 0, 200, 200)
        assert np.array_equal(got[:100, :100], textured(600, 400)[300:, 500:])
        assert (got[100:] == 255).all()
        assert np.array_equal(slide.read_region(0, 0, 1, 150, 100), textured(600, 400)[::4, ::4])


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("slide.tmap", "cannot be opened", r"format \.tmap is not supported: export it with"),
        ("slide.qqq", "cannot be opened", r"No reader for \.qqq files is installed.*convert it"),
        ("slide.svs", "cannot be opened", "copied completely"),
    ],
)
def test_the_hint_fits_the_format(tmp_path: Path, name: str, message: str, hint: str) -> None:
    path = tmp_path / name
    path.write_bytes(np.random.default_rng(2).bytes(4100))
    with pytest.raises(SlideUnsupported, match=message) as caught:
        open_slide(path)
    import re

    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("kind", ["photometric", "compression", "samples", "channels", "zarr"])
def test_an_unsupported_kind_is_to_be_converted_not_copied_again(tmp_path: Path, kind: str, tiled: bool) -> None:
    image, path = textured(128, 128), tmp_path / "a.tif"
    how: dict[str, object] = {"photometric": "rgb"}
    if kind == "photometric":
        image, how = image[..., 0], {"photometric": "cfa"}
    elif kind == "samples":
        image = image.astype(np.int32) - 200
    elif kind == "channels":
        image = 255 - image[..., [0, 1]] // 8  # as bright as glass
        how = {"photometric": "minisblack", "planarconfig": "contig"}
    if kind == "zarr":
        path = write_zarr(tmp_path / "a.zarr", [image.transpose(2, 0, 1).astype(np.float32) - 300])
    else:
        tifffile.imwrite(path, image, tile=(64, 64) if tiled else None, metadata=None, **how)
    if kind == "compression":
        data = path.read_bytes()
        at = data.index(struct.pack("<HHI", 259, 3, 1))
        path.write_bytes(data[: at + 8] + struct.pack("<H", 34676) + data[at + 10 :])  # SGI LogLuv
    with pytest.raises(SlideUnsupported) as caught:
        open_slide(path)
    assert caught.value.hint.startswith("Convert it to 8-bit RGB")


def test_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "slide.svs.zip", "w") as archive:
        archive.writestr("slide.svs", b"x" * 100)
    (tmp_path / "slide.tif.gz").write_bytes(gzip.compress(b"x" * 100))
    for name, kind in (("slide.svs.zip", "zip"), ("slide.tif.gz", "gzip")):
        with pytest.raises(SlideUnsupported, match=f"it is a {kind} archive") as caught:
            open_slide(tmp_path / name)
        assert caught.value.hint == "Unpack the archive and give the slide inside it."


# ------------------------------------------------------------------------------------------ DICOM


def test_a_folder_of_dicom_without_suffixes(shared_data: Path, tmp_path: Path) -> None:
    for i in (0, 1):
        shutil.copy(shared_data / "slides" / f"boxes_{i}.dcm", tmp_path / f"IM{i:04d}")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "README").write_text("exported on Monday")
    with open_slide(tmp_path) as folder, open_slide(shared_data / "slides" / "boxes_0.dcm") as file:
        assert (folder.reader, folder.size, folder.mpp) == ("openslide", file.size, 0.499)
        assert np.array_equal(folder.read_region(0, 0, 0, *file.size), file.read_region(0, 0, 0, *file.size))
    with open_slide(tmp_path / "IM0000") as slide:
        assert slide.vendor == "dicom"


def test_a_folder_of_two_series_is_not_guessed_at(shared_data: Path, tmp_path: Path) -> None:
    data = (shared_data / "slides" / "boxes_0.dcm").read_bytes()
    (tmp_path / "a").write_bytes(data)
    at = data.index(b"\x20\x00\x0e\x00UI") + 8
    (tmp_path / "b").write_bytes(data[:at] + b"9" + data[at + 1 :])
    with pytest.raises(SlideUnsupported, match="2 DICOM series; give any one file"):
        open_slide(tmp_path)


def test_a_folder_without_slides_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(SlideNotFound, match="is a folder, not a slide"):
        open_slide(tmp_path)


@pytest.mark.parametrize(
    ("name", "says", "way_out"),
    [
        ("report.json", "", ""),
        ("state.json", "is what was written about an analyzed slide", "wsi-chat chat {}`"),
        ("run.json", "is the folder of a run", "wsi-chat view {}`"),
    ],
)
def test_a_folder_of_ours_is_named_for_what_it_is(tmp_path: Path, name: str, says: str, way_out: str) -> None:
    """``ask OUT/<slide id>`` said only that no photographs lie in it."""
    (tmp_path / name).write_text("{}")
    if name == "state.json":
        (tmp_path / "report.json").write_text("{}")
    with pytest.raises(SlideNotFound) as caught:
        open_slide(tmp_path)
    assert says in caught.value.message
    assert way_out.format(tmp_path) in caught.value.hint


def test_a_folder_of_ours_without_a_report_says_where_it_is_and_names_no_command_that_ends_here_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(SlideNotFound) as caught:
        open_slide(tmp_path)
    assert "It holds no report: analyze the slide's file" in caught.value.hint
    (tmp_path / "superseded").mkdir()
    (tmp_path / "superseded" / "report.json").write_text("{}")
    with pytest.raises(SlideNotFound) as caught:
        open_slide(tmp_path)
    assert str(tmp_path / "superseded") in caught.value.hint
    assert "wsi-chat chat" not in caught.value.hint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    ("name", "kind"), [("pipe", "a named pipe"), ("socket", "a socket"), ("null", "a character device")]
)
def test_what_is_no_regular_file_is_named_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """It was called an empty file that should be copied again."""
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes at most
    path = Path(name)
    if name == "pipe":
        os.mkfifo(path)
    elif name == "null":
        path.symlink_to(os.devnull)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    with pytest.raises(SlideUnsupported) as caught:
        open_slide(path)
    assert caught.value.message == f"{name} is {kind}, not a regular file."
    assert "again" not in caught.value.hint


def test_dicom_of_16_bits_is_refused_with_its_reason(shared_data: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom comes with the extra dicom")
    dataset = pydicom.dcmread(shared_data / "slides" / "boxes_0.dcm")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.save_as(tmp_path / "wide.dcm")
    with pytest.raises(SlideError, match=r"wide\.dcm.*BitsAllocated value 16") as caught:
        open_slide(tmp_path / "wide.dcm")
    assert "8 bits per sample" in caught.value.hint
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [*(f"cut {share}" for share in (30, 50, 67, 80)), "zeros 200", "zeros 2000", "flip 140", "flip 1973"]
)
def test_a_damaged_dicom_is_not_called_unsupported(shared_data: Path, tmp_path: Path, damage: str) -> None:
    """Who exported it anew with 8 bits per sample, as it had, would have got nowhere."""
    data = bytearray((shared_data / "slides" / "boxes_0.dcm").read_bytes())
    how, number = damage.split()
    if how == "cut":
        del data[len(data) * int(number) // 100 :]
    elif how == "zeros":
        data[int(number) : int(number) + 512] = bytes(512)
    else:
        data[int(number)] ^= 0xFF
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(SlideError) as caught:
        open_slide(tmp_path / "a.dcm")
    assert "cut off or damaged" in caught.value.hint
    assert "opy it again from its source" in caught.value.hint
    assert "not supported" not in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("TransferSyntaxUID", "1.2.840.10008.1.2.4.80"),  # JPEG-LS
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"),  # a computed tomogram
        ("SamplesPerPixel", 1),
    ],
)
def test_a_dicom_whose_header_states_another_kind_is_unsupported(
    shared_data: Path, tmp_path: Path, keyword: str, value: object
) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom comes with the extra dicom")
    dataset = pydicom.dcmread(shared_data / "slides" / "boxes_0.dcm")
    setattr(dataset.file_meta if keyword == "TransferSyntaxUID" else dataset, keyword, value)
    if keyword == "SOPClassUID":
        dataset.file_meta.MediaStorageSOPClassUID = value
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(SlideError) as caught:
        open_slide(tmp_path / "a.dcm")
    assert "This kind of DICOM is not supported" in caught.value.hint


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:

    image = textured(200, 100)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tif"))
    shutil.move(tmp_path / "a.tif", odd)
    with open_slide(odd, mpp=0.5) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, 200, 100), image)
        assert len(slide.fingerprint) == 64
    odd.write_bytes(b"no slide")
    with pytest.raises(SlideUnsupported) as caught:
        open_slide(odd)
    str(caught.value).encode("utf-8")  # a message can always be written


# ------------------------------------------------------------------------------------------ fastslide


def test_fastslide_is_faithful_or_refuses(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastslide", reason="the package fastslide is optional and not installed")
    from .conftest import write_tiff

    whole = shared_data / "slides" / "CMU-1-Small-Region.svs"
    image = textured(700, 520)
    for path in (whole, write_tiff(tmp_path / "a.tiff", image, levels=3)):
        with open_slide(path, reader="fastslide") as fast, open_slide(path) as slide:
            assert (fast.level_sizes, fast.mpp) == (slide.level_sizes, pytest.approx(slide.mpp))
            for level, (w, h) in enumerate(slide.level_sizes):
                ours, theirs = (s.read_region(0, 0, level, w, h).astype(int) for s in (fast, slide))
                assert np.abs(ours - theirs).max() <= 3
            x, y = fast.level_sizes[0][0] - 40, -30
            beyond = fast.read_with_mask(x, y, 0, 100, 100), slide.read_with_mask(x, y, 0, 100, 100)
            assert np.array_equal(beyond[0][1], beyond[1][1])


def test_fastslide_is_never_chosen_and_refuses_what_it_would_change(tmp_path: Path) -> None:
    pytest.importorskip("fastslide", reason="the package fastslide is optional and not installed")
    import tifffile

    from .conftest import write_tiff

    path = tmp_path / "soft.tiff"
    tifffile.imwrite(
        path, textured(512, 512), photometric="ycbcr", compression="jpeg", tile=(256, 256), subsampling=(2, 2)
    )
    with open_slide(path, mpp=0.5) as slide:
        assert slide.reader == "tiff"
    with pytest.raises(SlideUnsupported, match="subsampled chroma"):
        open_slide(path, reader="fastslide")
    gap = write_tiff(tmp_path / "gap.tiff", textured(600, 600))
    data = bytearray(gap.read_bytes())
    with tifffile.TiffFile(gap) as file:
        at = file.pages[0].tags["TileByteCounts"].valueoffset
    data[at : at + 4] = bytes(4)
    gap.write_bytes(data)
    with pytest.raises(SlideUnsupported, match="tiles are missing"):
        open_slide(gap, reader="fastslide")


# ------------------------------------------------------------------------------------------ privacy


@pytest.mark.parametrize("reader", ["openslide", "tiffslide", "fastslide"])
def test_label_and_macro_of_a_scan_are_never_decoded(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """The bytes of thumbnail, label and macro are ruined, and asking for them raises: nothing notices."""
    import openslide
    import tifffile

    from tilers import find_foreground

    if reader == "fastslide":
        pytest.importorskip("fastslide", reason="the package fastslide is optional and not installed")

    def opened(*arguments: object) -> None:
        raise AssertionError("an associated image was asked for")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(opened))
    whole = shared_data / "slides" / "CMU-1-Small-Region.svs"
    data = bytearray(whole.read_bytes())
    with tifffile.TiffFile(whole) as file:
        for page in list(file.pages)[2:]:
            for at, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                data[at : at + count] = bytes(count)
    (tmp_path / "ruined.svs").write_bytes(data)
    with open_slide(tmp_path / "ruined.svs", reader=reader) as slide, open_slide(whole, reader=reader) as sound:
        assert np.array_equal(slide.overview(500), sound.overview(500))
        assert np.array_equal(find_foreground(slide).mask, find_foreground(sound).mask)
        plan = plan_tiles(slide, None, tile_px=512, mpp=0.5)
        assert all(patch.status == "ok" for patch in TileStream(slide, plan))
        slide.record("x").model_dump_json()
