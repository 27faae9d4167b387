"""Sound slides of every kind, small enough to be damaged and read hundreds of times a second."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from benchmarks.fuzz.scanner_seeds import make_scanners
from wsi_chat.datasets.render.slide import render_slide

WIDTH, HEIGHT, TILE = 512, 384, 128
MPP = 0.5
RESOLUTION: dict[str, Any] = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER", "metadata": None}
APERIO = "Aperio Image Library v11.2.1\r\n{} [0,0 {}x{}] ({}x{}) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5000|Filename = 1"
Pixels = NDArray[np.uint8]


def make_slides(folder: Path, data: Path | None) -> None:
    """Writes them; ``data`` is a folder with a real SVS and DICOM slides, which cannot be made here, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "scratch.tiff"
    render_slide(scratch, seed=5, width_px=1024, height_px=768, recipe="abnormal", density=900.0)
    whole = tifffile.imread(scratch, key=0)
    for path in folder.glob("scratch*"):
        path.unlink()
    rgb = np.ascontiguousarray(whole[200 : 200 + HEIGHT, 256 : 256 + WIDTH, :3])
    _write_tiffs(folder, rgb)
    _write_aperio(folder / "aperio.svs", rgb)
    make_scanners(folder, rgb)
    _write_ome(folder, rgb)
    _write_pictures(folder, rgb)
    for version in (2, 3):
        _write_zarr(folder / f"rgb{version}.ome.zarr", rgb, version)
        _write_zarr(folder / f"fluorescence{version}.ome.zarr", rgb, version, fluorescence=True)
    render_slide(folder / "rendered.tiff", seed=6, width_px=512, height_px=512, recipe="abnormal", tile=128)
    for extra in folder.glob("rendered.truth.*"):
        extra.unlink()
    if data is not None:
        shutil.copy(data / "CMU-1-Small-Region.svs", folder / "scan.svs")
        shutil.copy(data / "small.svs", folder / "small.svs")
        _write_dicom(folder / "dicom", data / "boxes_0.dcm", rgb)


def _write_tiffs(folder: Path, rgb: Pixels) -> None:
    def pyramid(name: str, image: NDArray[Any] = rgb, *, big: bool = False, **how: Any) -> None:
        how = {"photometric": "rgb", "tile": (TILE, TILE), **how, **RESOLUTION}
        with tifffile.TiffWriter(folder / name, bigtiff=big) as writer:
            writer.write(image, **how)
            small = image[:, ::2, ::2] if how.get("planarconfig") else image[::2, ::2]
            writer.write(small, subfiletype=1, **how)

    pyramid("jpeg.tiff", compression="jpeg")
    pyramid("deflate.tiff", compression="zlib", predictor=True)
    pyramid("big-lzw.tiff", big=True, compression="lzw")
    pyramid("raw.tiff")
    pyramid("packbits.tiff", compression="packbits")
    pyramid("jp2k.tiff", compression="jpeg2000")
    pyramid("zstd.tiff", compression="zstd")
    pyramid("webp.tiff", compression="webp")
    pyramid("planes.tiff", np.moveaxis(rgb, 2, 0), compression="zlib", planarconfig="separate")
    pyramid("deep.tiff", rgb.astype(np.uint16) * 16, compression="zlib")
    pyramid("grey.tiff", rgb[..., 1], compression="lzw", photometric="miniswhite")
    flat = {"photometric": "rgb", **RESOLUTION}
    tifffile.imwrite(folder / "strips.tiff", rgb, rowsperstrip=64, compression="lzw", **flat)
    tifffile.imwrite(folder / "jpeg-strips.tiff", rgb, rowsperstrip=64, compression="jpeg", **flat)
    tifffile.imwrite(folder / "flat.tiff", rgb, rowsperstrip=HEIGHT, **flat)
    image = Image.fromarray(rgb).convert("P")
    image.save(folder / "palette.tiff", compression="tiff_lzw", dpi=(50800, 50800))
    with tifffile.TiffWriter(folder / "stack.tiff", imagej=True) as writer:  # ImageJ: three focal planes
        stack = np.stack([rgb[..., 1], rgb[..., 0], rgb[..., 2]])[:, :256, :256]
        writer.write(stack, resolution=(2.0, 2.0), metadata={"axes": "ZYX", "unit": "um"})


def _write_dicom(folder: Path, template: Path, rgb: Pixels) -> None:
    """A DICOM slide of JPEG tiles, with the metadata of a smaller one."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, generate_uid

    folder.mkdir(exist_ok=True)
    frames = []
    for y in range(0, HEIGHT, TILE):
        for x in range(0, WIDTH, TILE):
            file = io.BytesIO()
            Image.fromarray(rgb[y : y + TILE, x : x + TILE]).save(file, "JPEG", quality=80)
            frames.append(file.getvalue())
    data = pydicom.dcmread(template)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=["fuzz"])
    data.Rows = data.Columns = TILE
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows, data.NumberOfFrames = WIDTH, HEIGHT, len(frames)
    data.PhotometricInterpretation = "YBR_FULL_422"
    data.PixelData = encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    data.save_as(folder / "boxes_0.dcm")


def _write_aperio(path: Path, rgb: Pixels) -> None:
    """Aperio's layout: the scan, a thumbnail, a smaller level, a label and a macro."""
    size = f"{WIDTH}x{HEIGHT}"
    texts = {name: APERIO.format(size, WIDTH, HEIGHT, TILE, TILE) for name in ("scan", "half")}
    with tifffile.TiffWriter(path) as writer:
        tiles: dict[str, Any] = {"tile": (TILE, TILE), "compression": "jpeg", "photometric": "rgb", "metadata": None}
        strips: dict[str, Any] = {"rowsperstrip": 16, "compression": "jpeg", "photometric": "rgb", "metadata": None}
        writer.write(rgb, description=texts["scan"], **tiles)
        writer.write(rgb[::4, ::4], description=f"Aperio Image Library v11.2.1\r\n{size} -> 128x96 - ", **strips)
        writer.write(rgb[::2, ::2], description=texts["half"] + f"\r\n{size} -> 256x192", **tiles)
        label = {"compression": "lzw", "photometric": "rgb", "metadata": None, "rowsperstrip": 32}
        writer.write(rgb[:64, :64], description="Aperio Image Library v11.2.1\r\nlabel 64x64", subfiletype=1, **label)
        macro = "Aperio Image Library v11.2.1\r\nmacro 128x64"
        writer.write(rgb[:64, :128], description=macro, subfiletype=9, **strips)


def _write_ome(folder: Path, rgb: Pixels) -> None:
    scale = {"PhysicalSizeX": MPP, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": MPP, "PhysicalSizeYUnit": "µm"}
    planes = np.moveaxis(rgb, 2, 0)
    tile = (TILE, TILE)
    with tifffile.TiffWriter(folder / "ome-rgb.ome.tiff", ome=True) as writer:
        how: dict[str, Any] = {"tile": tile, "photometric": "rgb", "compression": "jpeg"}
        writer.write(rgb, subifds=1, metadata={"axes": "YXS", **scale}, **how)
        writer.write(rgb[::2, ::2], subfiletype=1, **how)
    channels = {"axes": "CYX", "Channel": {"Name": ["DAPI", "Cy5", "FITC"]}, **scale}
    tifffile.imwrite(folder / "ome-channels.ome.tiff", planes.astype(np.uint16) * 10, tile=tile, compression="zlib",
                     photometric="minisblack", metadata=channels)  # fmt: skip
    stack = np.stack([planes[1], planes[0]])[:, :256, :256]
    tifffile.imwrite(folder / "ome-stack.ome.tiff", stack, tile=tile, photometric="minisblack", compression="lzw",
                     metadata={"axes": "ZYX", **scale})  # fmt: skip


def _write_pictures(folder: Path, rgb: Pixels) -> None:
    image, dpi = Image.fromarray(rgb), (50800, 50800)
    image.save(folder / "plain.png", dpi=dpi)
    Image.fromarray(rgb[:256, :256, 0].astype(np.uint16) * 200).save(folder / "grey16.png", dpi=dpi)
    image.convert("P").save(folder / "palette.png", dpi=dpi)
    image.save(folder / "plain.jpg", quality=80, dpi=dpi)
    image.save(folder / "progressive.jpg", quality=80, progressive=True, dpi=dpi)
    image.convert("L").save(folder / "grey.jpg", quality=80, dpi=dpi, restart_marker_rows=2)
    image.save(folder / "plain.bmp", dpi=dpi)
    image.save(folder / "plain.webp", quality=70)
    image.save(folder / "lossless.webp", lossless=True)
    fields = folder / "fields"
    fields.mkdir(exist_ok=True)
    image.crop((0, 0, 256, 256)).save(fields / "a.jpg", dpi=dpi)
    image.crop((200, 100, 456, 356)).save(fields / "b.png", dpi=dpi)


def _write_zarr(path: Path, rgb: Pixels, version: int, *, fluorescence: bool = False) -> None:
    shutil.rmtree(path, ignore_errors=True)
    data: NDArray[Any] = np.moveaxis(rgb, 2, 0)
    if fluorescence:
        data = data[:2].astype(np.uint16) * 16
    group = zarr.open_group(str(path), mode="w", zarr_format=version)  # type: ignore[arg-type]
    for level in (0, 1):
        part = data[:, :: 2**level, :: 2**level]
        extra: dict[str, Any] = {}
        if version == 2:
            extra = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
        group.create_array(str(level), shape=part.shape, chunks=(1, TILE, TILE), dtype=part.dtype, **extra)[:] = part
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    scales = [[1, MPP * 2**n, MPP * 2**n] for n in (0, 1)]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for n, scale in enumerate(scales)
    ]
    colours, top = (["0000FF", "00FF00"], 4095) if fluorescence else (["FF0000", "00FF00", "0000FF"], 255)
    channels = [{"color": colour, "window": {"start": 0, "end": top}, "active": True} for colour in colours]
    multiscales = [{"version": "0.4" if version == 2 else "0.5", "axes": axes, "datasets": datasets}]
    meta = {"multiscales": multiscales, "omero": {"channels": channels}}
    group.attrs.update(meta if version == 2 else {"ome": {"version": "0.5", **meta}})
