"""Small slides in the layouts of scanners of which no real file is at hand, as OpenSlide reads them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
TILE = 128
LEICA_PLACE = (96, 64)  # px at level 0, of Leica's area on its glass
JPEG: dict[str, Any] = {
    "compression": "jpeg",
    "compressionargs": {"level": 80},
    "photometric": "ycbcr",
    "metadata": None,
}


def make_scanners(folder: Path, rgb: Pixels) -> None:
    """A slide of each scanner, of a picture whose sides are multiples of TILE and 4."""
    write_philips(folder / "philips.tiff", rgb)
    write_trestle(folder / "trestle.tif", rgb)
    write_leica(folder / "leica.scn", rgb)
    write_ndpi(folder / "hamamatsu.ndpi", rgb)
    write_ventana(folder / "ventana.bif", rgb)
    write_huron(folder / "huron.tif", rgb)


def _levels(rgb: Pixels) -> list[Pixels]:
    return [rgb, np.ascontiguousarray(rgb[::2, ::2]), np.ascontiguousarray(rgb[::4, ::4])]


def _filled(image: Pixels, tile: int) -> Pixels:
    high, wide = (-(-side // tile) * tile for side in image.shape[:2])
    return np.pad(image, ((0, high - image.shape[0]), (0, wide - image.shape[1]), (0, 0)), mode="edge")


def write_philips(path: Path, rgb: Pixels, *, tile: int = TILE, mpp: float = 0.5, **how: Any) -> Path:
    """Philips' TIFF: the XML states the spacing of every level, and directories count the last tiles whole."""
    levels = _levels(rgb)
    spacings = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING">'
        f'"{mpp * 2**n / 1000:.8f}" "{mpp * 2**n / 1000:.8f}"</Attribute></DataObject>'
        for n in range(len(levels))
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        '<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        f'<Attribute Name="DICOM_PIXEL_SPACING">"{mpp / 1000:.8f}" "{mpp / 1000:.8f}"</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{spacings}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for n, image in enumerate(levels):
            told = {"description": text, "software": "Philips DP v1.0"} if n == 0 else {"subfiletype": 1}
            writer.write(_filled(image, tile), tile=(tile, tile), **{**JPEG, **told, **how})
    return path


def write_trestle(path: Path, rgb: Pixels, *, tile: int = TILE, mpp: float = 0.5, **how: Any) -> Path:
    """Trestle's TIFF without overlaps: every directory is a level; µm/px stands in the resolution tags."""
    text = "Background Color=ffffff;Objective Power=20;OverlapsXY= 0 0 0 0 0 0"
    with tifffile.TiffWriter(path) as writer:
        for n, image in enumerate(_levels(rgb)):
            told = {"description": text, "software": "MedScan 1.0"} if n == 0 else {}
            writer.write(image, tile=(tile, tile), resolution=(mpp, mpp), **{**JPEG, **told, **how})
    return path


def write_huron(path: Path, rgb: Pixels, *, tile: int = TILE, mpp: float = 0.5, **how: Any) -> Path:
    """Huron's TIFF, which OpenSlide reads as any other TIFF."""
    resolution: dict[str, Any] = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for n, image in enumerate(_levels(rgb)):
            told = {"description": "Source = Bright Field"} if n == 0 else {"subfiletype": 1}
            writer.write(image, tile=(tile, tile), **{**JPEG, **resolution, **told, **how})
    return path


def write_leica(
    path: Path, rgb: Pixels, *, tile: int = TILE, mpp: float = 0.5, places: Sequence[tuple[int, int]] = (LEICA_PLACE,),
    **how: Any,
) -> Path:  # fmt: skip
    """Leica's SCN: areas of a glass larger than they are; ``places`` in level-0 px, all with the same picture."""
    nm = round(mpp * 1000)  # a unit of the XML
    levels = _levels(rgb)
    height, width = rgb.shape[:2]
    across, down = max(x for x, _ in places) + width + 64, max(y for _, y in places) + height + 64
    areas = [((x, y, width, height), levels) for x, y in places]
    if len(areas) > 1:  # OpenSlide then wants a picture of the glass
        areas.append(((0, 0, across, down), levels[2:]))
    images, written = "", []
    for (x, y, w, h), pictures in areas:
        dimensions = "".join(
            f'<dimension sizeX="{image.shape[1]}" sizeY="{image.shape[0]}" r="{n}" ifd="{len(written) + n}"/>'
            for n, image in enumerate(pictures)
        )
        written += pictures
        images += (
            f'<image><creationDate>2020-01-01T00:00:00Z</creationDate><device model="Leica SCN400" version="1"/>'
            f'<pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
            f'<view sizeX="{w * nm}" sizeY="{h * nm}" offsetX="{x * nm}" offsetY="{y * nm}" spacingZ="0"/>'
            "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="x"><collection '
        f'name="x" sizeX="{across * nm}" sizeY="{down * nm}"><barcode>x</barcode>{images}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for n, image in enumerate(written):
            told = {"description": text} if n == 0 else {}
            per_cm = 1e4 / mpp * image.shape[1] / width
            writer.write(image, tile=(tile, tile), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                         **{**JPEG, **told, **how})  # fmt: skip
    return path


def write_ndpi(path: Path, rgb: Pixels, *, mpp: float = 0.5, subsampling: str = "4:2:2", table: bool = True) -> Path:
    """Hamamatsu's NDPI: levels 1 and 1:4, each one JPEG picture with restart markers, and a macro.

    The layout is a TIFF of version 42 with offsets of 64 bits: behind each directory stand the upper halves of its
    values.
    """
    pictures = [(rgb, 20.0), (rgb[::4, ::4], 5.0), (rgb[:64, :128], -1.0)]
    out = bytearray(b"II*\0" + bytes(8))
    link = 4
    for number, (image, lens) in enumerate(pictures):
        jpeg = _restarted(image, subsampling, TILE if number == 0 else 0)
        at = len(out)
        out += jpeg
        entries: list[tuple[int, int, int, bytes]] = [  # tag, type, count, value
            (256, 4, 1, struct.pack("<I", image.shape[1])),
            (257, 4, 1, struct.pack("<I", image.shape[0])),
            (258, 3, 3, struct.pack("<3H", 8, 8, 8)),
            (259, 3, 1, struct.pack("<H", 7)),
            (262, 3, 1, struct.pack("<H", 6)),
            (271, 2, 10, b"Hamamatsu\0"),
            (273, 4, 1, struct.pack("<I", at)),
            (277, 3, 1, struct.pack("<H", 3)),
            (278, 4, 1, struct.pack("<I", image.shape[0])),
            (279, 4, 1, struct.pack("<I", len(jpeg))),
            (282, 5, 1, struct.pack("<II", round(1e4 / mpp * lens / 20) if lens > 0 else 1, 1)),
            (283, 5, 1, struct.pack("<II", round(1e4 / mpp * lens / 20) if lens > 0 else 1, 1)),
            (296, 3, 1, struct.pack("<H", 3)),
            (65420, 4, 1, struct.pack("<I", 1)),
            (65421, 11, 1, struct.pack("<f", lens)),
            (65422, 9, 1, struct.pack("<i", 0)),
            (65423, 9, 1, struct.pack("<i", 0)),
            (65424, 9, 1, struct.pack("<i", 0)),
        ]
        starts = _starts(jpeg)
        if table and len(starts) > 1:
            entries.append((65426, 4, len(starts), struct.pack(f"<{len(starts)}I", *starts)))
        body = b""
        for tag, kind, count, value in entries:
            if len(value) > 4:
                place = struct.pack("<I", len(out))
                out += value
                value = place
            body += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
        out[link : link + 8] = struct.pack("<Q", len(out))
        link = len(out) + 2 + len(body)
        out += struct.pack("<H", len(entries)) + body + bytes(8) + bytes(4 * len(entries))
    path.write_bytes(out)
    return path


def _restarted(image: Pixels, subsampling: str, width: int) -> bytes:
    """A JPEG picture with a restart marker after every ``width`` px, 0 for none."""
    file = io.BytesIO()
    mcu = 8 if subsampling == "4:4:4" else 16
    Image.fromarray(np.ascontiguousarray(image)).save(
        file, "JPEG", quality=80, subsampling=subsampling, restart_marker_blocks=width // mcu
    )
    return file.getvalue()


def _starts(jpeg: bytes) -> list[int]:
    """Where the data behind the header and behind each restart marker begin."""
    scan = jpeg.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    return [first, *(at + 2 for at in range(first, len(jpeg) - 1) if jpeg[at] == 0xFF and 0xD0 <= jpeg[at + 1] < 0xD8)]


def write_ventana(path: Path, rgb: Pixels, *, tile: int = TILE, overlap: int = 0, **how: Any) -> Path:
    """Ventana's BIF: one area, whose tiles overlap by so many pixels; the sides are multiples of 4 tiles."""
    down, across = rgb.shape[0] // tile, rgb.shape[1] // tile
    joint = '<TileJointInfo Confidence="100" Direction="{}" Tile1="{}" Tile2="{}" OverlapX="{}" OverlapY="{}"/>'
    joints = joint.format("RIGHT", 1, 2, overlap, 0) + joint.format("UP", 1, 2 * across, 0, overlap)
    tiles = (
        '<EncodeInfo Ver="2"><SlideInfo/><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" '
        f'Width="{tile}" Height="{tile}" NumRows="{down}" NumCols="{across}" Pos-X="0" Pos-Y="0">{joints}</ImageInfo>'
        '</SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scanner = '<iScan Magnification="20" ScanRes="0.5" Z-layers="1" ScannerModel="VENTANA iScan HT"/>'
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(rgb[:64, :64], description="Label Image", photometric="rgb", metadata=None,
                     extratags=[(700, 7, len(scanner), scanner.encode(), True)])  # fmt: skip
        for n, image in enumerate(_levels(rgb)):
            extra = [(700, 7, len(tiles), tiles.encode(), True)] if n == 0 else []
            writer.write(_filled(image, tile), tile=(tile, tile), description=f"level={n} mag={20 / 2**n:g} quality=90",
                         **{**JPEG, "extratags": extra, **how})  # fmt: skip
    return path
