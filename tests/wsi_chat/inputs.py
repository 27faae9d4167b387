"""How the inputs of tests/cases/inputs.yaml are made, and who reads each kind: the shortest way to the code that does.

A case has ``text`` (the file's content, as it stands), ``json`` (as JSON), or ``make`` (one of `MAKERS` and its words).
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

import wsi_chat
from aggregators.fitted import load_fitted
from tilers import TileStream, find_foreground, open_slide, plan_tiles
from wsi_chat.analysis.ancillary import read_ancillary
from wsi_chat.analysis.box_precision import read_box_precision
from wsi_chat.analysis.pseudonyms import Pseudonyms
from wsi_chat.analysis.run_folder import RunFolder, SlideFolder
from wsi_chat.analysis.scope import read_scope
from wsi_chat.cohort import read_manifest
from wsi_chat.datasets.annotated import Renaming
from wsi_chat.datasets.coco import read_coco
from wsi_chat.datasets.info import find_data
from wsi_chat.datasets.qupath import read_geojson
from wsi_chat.datasets.rows import BadRow, read_rows
from wsi_chat.datasets.sources import read_captions, read_voc_folder
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import read_checkpoint
from wsi_chat.engines.adapter import read_adapter
from wsi_chat.evaluation.predictions import read_predictions
from wsi_chat.journal import Journal
from wsi_chat.schema import Answer
from wsi_chat.settings import Settings, resolve
from wsi_chat.terminology import load_system

PLAIN = Renaming({}, lambda name: "")
EMBEDDED = Path(wsi_chat.__file__).parent / "embedded"
PIXELS = np.random.default_rng(5).integers(90, 250, (96, 128, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Kind:
    """What a kind of input is called on disk, and what reads it; it returns what of it was read, as text."""

    file: str
    read: Callable[[Path], object]


# ------------------------------------------------------------------------------------------------ making


def make(case: Mapping[str, Any], folder: Path) -> Path:
    """The case's file in ``folder``."""
    path = folder / case.get("file", KINDS[case["kind"]].file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if "json" in case:
        path.write_text(json.dumps(case["json"]), encoding="utf-8")
    elif "make" in case:
        verb, *words = str(case["make"]).split()
        MAKERS[verb](path, *words)
    else:
        path.write_bytes(str(case["text"]).encode("utf-8", "surrogateescape"))
    return path


def _tiff(path: Path, **options: Any) -> None:
    given: dict[str, Any] = {"tile": (32, 32), "photometric": "rgb", "compression": "deflate"}
    scale = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, PIXELS, **(given | scale | options))


def _tag(path: Path, name: str, index: str, value: str) -> None:
    """A sound tiled TIFF with one number of one tag of its first page overwritten."""
    _tiff(path)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[name]  # type: ignore[union-attr]
        size = {3: 2, 4: 4, 5: 4, 16: 8}[int(tag.dtype)]
        at = tag.valueoffset + int(index) * size
    data[at : at + size] = (int(value) % 2 ** (8 * size)).to_bytes(size, "little")
    path.write_bytes(data)


def _loop(path: Path) -> None:
    """A TIFF whose directory names itself as the next one."""
    _tiff(path)
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * entries, at)
    path.write_bytes(data)


def _entries(path: Path, count: str) -> None:
    """A TIFF whose directory claims so many entries."""
    _tiff(path)
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    struct.pack_into("<H", data, at, int(count))
    path.write_bytes(data)


def _tiff_with(path: Path, *words: str) -> None:
    """A TIFF of pixels that are not 8-bit RGB, or compressed by a rarer method; sound in itself."""
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "float": (np.zeros((64, 64), np.float32), {"tile": (32, 32)}),
        "complex": (np.zeros((64, 64), np.complex64), {}),
        "one-bit": (np.zeros((64, 64), bool), {"photometric": "minisblack"}),
        "signed": (np.zeros((64, 64, 3), np.int16), {"tile": (32, 32), "photometric": "rgb"}),
        "five-samples": (np.zeros((64, 64, 5), np.uint8), {"photometric": "rgb", "tile": (32, 32)}),
        "palette": (
            np.zeros((64, 64), np.uint8), {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
        ),
        "planes": (np.zeros((3, 64, 64), np.uint8), {"photometric": "rgb", "planarconfig": "separate"}),
        "one-pixel": (np.zeros((1, 1, 3), np.uint8), {"photometric": "rgb"}),
        "bigtiff": (PIXELS, {"bigtiff": True, "tile": (32, 32), "photometric": "rgb"}),
        "big-endian": (PIXELS, {"byteorder": ">", "tile": (32, 32), "photometric": "rgb"}),
    }  # fmt: skip
    pixels, options = kinds[words[0]]
    tifffile.imwrite(path, pixels, **options)


def _cut(path: Path, kind: str, share: str) -> None:
    """A sound file of a kind, cut off at a share of its bytes."""
    _sound(path, kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * float(share))])


def _flip(path: Path, kind: str, share: str) -> None:
    """A sound file with eight bytes overwritten at a share of its length."""
    _sound(path, kind)
    data = bytearray(path.read_bytes())
    at = int(len(data) * float(share))
    data[at : at + 8] = b"\xff\x00" * 4
    path.write_bytes(data)


def _sound(path: Path, kind: str) -> None:
    if kind == "tiff":
        _tiff(path)
    elif kind == "jpeg-tiff":
        _tiff(path, compression="jpeg")
    elif kind == "journal":
        with Journal(path) as journal:
            for number in range(40):
                journal.put(Answer(f"{number:064d}", "screen", "A", probabilities={"A": 0.25, "B": 0.75}))
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"tile_id": [f"t{n:06}" for n in range(200)]}), path)
    else:
        Image.fromarray(PIXELS).save(path, format=kind)


def _png_claiming(path: Path, width: str, height: str) -> None:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", int(width), int(height), 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def _bmp_claiming(path: Path, size: str) -> None:
    """A sound BMP whose header claims so many bytes."""
    _sound(path, "BMP")
    data = bytearray(path.read_bytes())
    data[2:6] = int(size).to_bytes(4, "little")
    path.write_bytes(data)


def _picture(path: Path, kind: str) -> None:
    picture = Image.fromarray(PIXELS)
    if kind == "gif":
        picture.save(path, format="GIF")
    elif kind == "cmyk":
        picture.convert("CMYK").save(path, format="JPEG")
    elif kind == "grey-alpha":
        picture.convert("LA").save(path, format="PNG")
    elif kind == "turned":
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(path, format="JPEG", exif=exif)
    elif kind == "two-frames":
        picture.save(path, format="PNG", save_all=True, append_images=[picture.rotate(180)])


def _nested(path: Path, opening: str, count: str) -> None:
    path.write_text(opening * int(count))


def _long(path: Path, header: str, count: str) -> None:
    path.write_text(f"{header}\n{'a' * int(count)}\n")


def _deep_header(path: Path) -> None:
    """Weights whose header is JSON that is nested too deep."""
    path.write_bytes(struct.pack("<Q", 3000) + b"[" * 3000)


def _laughs(path: Path) -> None:
    """YAML whose aliases unfold to a billion items."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    path.write_text("\n".join(lines))


def _zarr(path: Path, what: str) -> None:
    """An OME-Zarr folder of one 64 x 64 px level (version 2), with one thing wrong."""
    axes = [{"name": name, "type": "channel" if name == "c" else "space"} for name in "cyx"]
    scales = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5, 0.5]}]}]
    attributes: dict[str, Any] = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": scales}]}
    array: dict[str, Any] = {
        "zarr_format": 2, "shape": [3, 64, 64], "chunks": [3, 64, 64], "dtype": "|u1", "compressor": None,
        "fill_value": 0, "order": "C", "filters": None, "dimension_separator": "/",
    }  # fmt: skip
    changes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "no-datasets": ({"multiscales": [{"version": "0.4", "axes": axes, "datasets": []}]}, {}),
        "multiscales-text": ({"multiscales": "none"}, {}),
        "outside": ({"multiscales": [{"axes": axes, "datasets": [{**scales[0], "path": "../../secret"}]}]}, {}),
        "missing-level": ({"multiscales": [{"axes": axes, "datasets": [{**scales[0], "path": "7"}]}]}, {}),
        "negative-shape": ({}, {"shape": [3, -64, 64]}),
        "huge-chunk": ({}, {"shape": [3, 2_000_000, 2_000_000], "chunks": [3, 2_000_000, 2_000_000]}),
        "one-pixel-chunks": ({}, {"shape": [3, 40_000, 40_000], "chunks": [1, 1, 1]}),
        "text-samples": ({}, {"dtype": "<U8"}),
        "objects": ({}, {"dtype": "|O"}),
        "unknown-codec": ({}, {"compressor": {"id": "no-such-codec"}}),
        "format-9": ({}, {"zarr_format": 9}),
    }
    above, below = changes[what]
    (path / "0" / "0" / "0").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps(attributes | above))
    (path / "0" / ".zarray").write_text(json.dumps(array | below))
    if not above and not below:
        (path / "0" / "0" / "0" / "0").write_bytes(PIXELS[:64, :64].transpose(2, 0, 1).tobytes())


def _dicom(path: Path, what: str) -> None:
    """A DICOM file that is no whole-slide image, or half of one."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6" if what != "other" else "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["case"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    if what == "no-frames":
        header.Rows = header.Columns = 64
        header.TotalPixelMatrixRows = header.TotalPixelMatrixColumns = 640
    header.save_as(path, enforce_file_format=True)


def _database(path: Path, what: str) -> None:
    if what == "other":
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA application_id=7")
            database.execute("CREATE TABLE notes (text)")
    elif what == "newer":
        Journal(path).close()
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version=99")
    database.close()


MAKERS: Mapping[str, Callable[..., object]] = {
    "tag": _tag, "loop": _loop, "entries": _entries, "tiff": _tiff_with, "cut": _cut, "flip": _flip,
    "png": _png_claiming, "bmp": _bmp_claiming, "picture": _picture, "nested": _nested, "laughs": _laughs,
    "zarr": _zarr, "dicom": _dicom, "database": _database, "long": _long, "deep_header": _deep_header,
    "bytes": lambda path, text="": path.write_bytes(bytes.fromhex(text)),
    "folder": lambda path: path.mkdir(), "missing": lambda path: None,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ reading


def _read_slide(path: Path) -> str:
    """Everything that a run reads of a slide: size, mask and every tile; how many came out as what."""
    with open_slide(path, mpp=0.5) as slide:
        plan = plan_tiles(slide, find_foreground(slide), tile_px=32, mpp=0.5, allow_upsample=True)
        states = [patch.status for patch in TileStream(slide, plan)]
    sound = states.count("ok")
    return f"{slide.size[0]} x {slide.size[1]} px, {sound} of {len(states)} tiles"


def _read_rows(path: Path) -> str:
    data = find_data(str(path))
    rows = list(read_rows(data))
    bad = [row for row in rows if isinstance(row, BadRow)]
    return f"{len(rows) - len(bad)} rows, {len(bad)} bad: {'; '.join(row.reason for row in bad)}"


def _read_predictions(path: Path) -> str:
    found = read_predictions(path)
    return f"{len(found.rows)} rows, {len(found.skipped)} bad: {'; '.join(why for _, why in found.skipped)}"


def _read_journal(path: Path) -> str:
    with Journal(path) as journal:
        return f"{len(journal)} answers"


def _read_scope(path: Path) -> object:
    return read_scope(Settings(scope=str(path)), None)


def _read_coco(path: Path) -> str:
    Image.fromarray(PIXELS[:64, :64]).save(path.parent / "a.png")
    return f"{len(read_coco(path, rename=PLAIN))} pictures"


def _read_voc(path: Path) -> str:
    Image.fromarray(PIXELS[:64, :64]).save(path.with_name("a.png"))
    Image.fromarray(PIXELS[:64, :64]).save(path.with_suffix(".png"))
    return f"{len(read_voc_folder(path.parent, rename=PLAIN))} pictures"


def _read_checkpoint(path: Path) -> object:
    """The configuration of the embedded checkpoint in place of its own."""
    for file in EMBEDDED.iterdir():
        if file.is_file() and file.name not in (path.name, "SHA256SUMS"):
            (path.parent / file.name).symlink_to(file)
    return read_checkpoint(path.parent)


def _read_adapter(path: Path) -> object:
    (path.parent / "adapter_model.safetensors").symlink_to(EMBEDDED / "model.safetensors")
    return read_adapter(path.parent, read_checkpoint(EMBEDDED))


def _read_state(path: Path) -> str:
    return f"{len(RunFolder(path.parent).slide_files)} slides known"


KINDS: Mapping[str, Kind] = {
    "slide": Kind("slide.tiff", _read_slide),
    "config": Kind("run.yaml", lambda path: resolve({}, config=path, environ={})[0].top_k),
    "manifest": Kind("manifest.csv", lambda path: f"{len(read_manifest(path))} slides"),
    "system": Kind("own.yaml", lambda path: load_system(str(path)).code),
    "dialect": Kind("own.yaml", lambda path: get_dialect(str(path)).name),
    "data set": Kind("cells.jsonl", _read_rows),
    "dataset_info": Kind("dataset_info.json", lambda path: len(find_data("cells", path.parent).files)),
    "predictions": Kind("predictions.jsonl", _read_predictions),
    "coco": Kind("coco.json", _read_coco),
    "voc": Kind("voc/field.xml", _read_voc),
    "geojson": Kind("cells.geojson", lambda path: read_geojson(path, rename=PLAIN)),
    "captions": Kind("captions.csv", lambda path: f"{len(read_captions(path))} pictures"),
    "ancillary": Kind("results.yaml", lambda path: read_ancillary((str(path),))),
    "box precision": Kind("evaluation.json", lambda path: read_box_precision(str(path), known=["hsil", "lsil"])),
    "scope": Kind("scope.yaml", _read_scope),
    "checkpoint": Kind("model/config.json", _read_checkpoint),
    "weights": Kind("model/model.safetensors", _read_checkpoint),
    "adapter": Kind("adapter/adapter_config.json", _read_adapter),
    "aggregator": Kind("aggregator/aggregator.json", lambda path: load_fitted(path.parent)),
    "report": Kind("out/s-1/report.json", lambda path: SlideFolder(path.parent).read_report()),
    "tiles": Kind("out/s-1/tiles.parquet", lambda path: SlideFolder(path.parent).read_tiles()),
    "run.json": Kind("run.json", _read_state),
    "journal": Kind("journal.sqlite", _read_journal),
    "pseudonyms": Kind("pseudonyms.json", lambda path: Pseudonyms(path)),
}
