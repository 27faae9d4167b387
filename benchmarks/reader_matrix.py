"""Which reader shows what of which format: size, levels, mpp, focal planes, colours, and how fast.

    PYTHONPATH=. python benchmarks/reader_matrix.py [--slides FOLDER] [--json FILE]

Files are made here; ``--slides`` adds every file of a folder (for instance scanners' slides). Colours are the largest
difference from the pixels that were written (or from OpenSlide's, for the files of ``--slides``), in grey levels over
every level. Speed is 256 px tiles per second on one thread, the readers one after another in this one run.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import runpy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from tilers import Slide, open_slide, reader_names
from wsi_chat.errors import WsiChatError

Pixels = NDArray[np.uint8]
SIDE, MPP = 1024, 0.5


def field() -> Pixels:
    """A smooth picture with texture, in which every place has its own colour."""
    yy, xx = np.mgrid[0:SIDE, 0:SIDE]
    grain = np.random.default_rng(1).integers(0, 12, (SIDE, SIDE))
    waves = [120 + 100 * np.sin(xx / 90), 120 + 100 * np.cos(yy / 70), 120 + 100 * np.sin((xx + yy) / 110)]
    return np.clip(np.stack(waves, axis=2) + grain[..., None], 0, 255).astype(np.uint8)


def halved(image: Pixels) -> Pixels:
    h, w = image.shape[:2]
    return image.reshape(h // 2, 2, w // 2, 2, 3).mean(axis=(1, 3)).astype(np.uint8)


def make_files(folder: Path, image: Pixels) -> Iterator[tuple[str, Path, Pixels]]:
    """(format, file, the pixels of its level 0)."""
    scale = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    levels = [image, halved(image), halved(halved(image))]

    def pyramid(name: str, **how: Any) -> Path:
        with tifffile.TiffWriter(folder / name) as writer:
            for n, level in enumerate(levels):
                writer.write(level, tile=(256, 256), subfiletype=int(n > 0), metadata=None, **how, **scale)
        return folder / name

    yield "TIFF, deflate, 3 levels", pyramid("deflate.tiff", photometric="rgb", compression="deflate"), image
    for name, how in (("4:4:4", (1, 1)), ("4:2:0", (2, 2))):
        path = pyramid(f"jpeg{how[0]}.tiff", photometric="ycbcr", compression="jpeg", subsampling=how)
        yield f"TIFF, JPEG {name}, 3 levels", path, tifffile.imread(path, key=0)
    ome = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    with tifffile.TiffWriter(folder / "sub.ome.tif", ome=True) as writer:
        writer.write(image, photometric="rgb", tile=(256, 256), subifds=2, metadata=ome, compression="deflate")
        for level in levels[1:]:
            writer.write(level, photometric="rgb", tile=(256, 256), subfiletype=1, compression="deflate")
    yield "OME-TIFF, SubIFDs", folder / "sub.ome.tif", image
    stack = np.stack([image // 2, image, image // 3])
    path = folder / "stack.ome.tif"
    tifffile.imwrite(path, stack, photometric="rgb", tile=(256, 256), metadata={**ome, "axes": "ZYXS"})
    yield "OME-TIFF, 3 focal planes", path, image
    path = folder / "channels.ome.tif"
    planes = image.transpose(2, 0, 1)
    tifffile.imwrite(path, planes, photometric="minisblack", tile=(256, 256), metadata={**ome, "axes": "CYX"})
    yield "OME-TIFF, RGB as channels", path, image
    path = folder / "wide.tif"
    tifffile.imwrite(path, image.astype(np.uint16) << 4, photometric="rgb", tile=(256, 256), metadata=None, **scale)
    yield "TIFF, 12 bits in 16", path, image
    path = folder / "cmyk.tif"
    Image.fromarray(np.dstack([255 - image, 0 * image[..., :1]]), "CMYK").save(path)
    yield "TIFF, CMYK", path, image
    path = written_kfb(folder / "a.kfb", image)
    yield "KFB, written by ourselves", path, decoded_kfb(image)
    yield "OME-Zarr 0.5, 3 levels", write_zarr(folder / "a.ome.zarr", levels), image
    for suffix, how in (("png", {}), ("bmp", {}), ("webp", {"lossless": True}), ("jpg", {"quality": 90})):
        path = folder / f"flat.{suffix}"
        Image.fromarray(image).save(path, **how)
        with Image.open(path) as stored:
            yield suffix.upper(), path, np.asarray(stored.convert("RGB"))


def written_kfb(path: Path, image: Pixels) -> Path:
    """A KFB file as the tests write it."""
    source = Path(__file__).parents[1] / "tests" / "tilers" / "kfb.py"
    written: Path = runpy.run_path(str(source))["write_kfb"](path, image, mpp=MPP)
    return written


def decoded_kfb(image: Pixels, tile: int = 256) -> Pixels:
    """What JPEG makes of the picture, tile by tile."""
    out = np.empty_like(image)
    for y in range(0, SIDE, tile):
        for x in range(0, SIDE, tile):
            data = io.BytesIO()
            Image.fromarray(image[y : y + tile, x : x + tile]).save(data, "JPEG", quality=95)
            out[y : y + tile, x : x + tile] = np.asarray(Image.open(data))
    return out


def write_zarr(path: Path, levels: list[Pixels]) -> Path:
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    datasets = []
    for n, level in enumerate(levels):
        data = level.transpose(2, 0, 1)
        group.create_array(str(n), shape=data.shape, chunks=(3, 256, 256), dtype=data.dtype)[...] = data
        step = [1.0, MPP * 2**n, MPP * 2**n]
        datasets.append({"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": step}]})
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "yx")]
    group.attrs.update({"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}})
    return path


def row(path: Path, reader: str, truth: Callable[[Slide], Pixels]) -> dict[str, Any]:
    try:
        with open_slide(path, reader=reader) as slide:
            wanted = truth(slide)
            got = slide.read_region(0, 0, 0, *slide.size).astype(int)
            same = got.shape == wanted.shape
            difference = np.abs(got - wanted) if same else np.array([255])
            return {
                "size": f"{slide.size[0]} x {slide.size[1]}", "levels": len(slide.level_sizes),
                "mpp": None if slide.mpp is None else round(slide.mpp, 4), "z": slide.planes,
                "largest": int(difference.max()), "mean": round(float(difference.mean()), 2),
                "tiles_per_s": round(speed(slide)),
            }  # fmt: skip
    except WsiChatError as error:
        return {"refused": error.message.partition(f"{reader}: ")[2] or error.message}


def speed(slide: Slide, seconds: float = 1.0) -> float:
    """256 px tiles of level 0 per second, on a fresh handle each round, so that no cache answers."""
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        with open_slide(slide.path, reader=slide.reader, mpp=MPP) as fresh:
            for y in range(0, slide.size[1] - 255, 256):
                for x in range(0, slide.size[0] - 255, 256):
                    fresh.read_region(x, y, 0, 256, 256)
                    count += 1
    return count / (time.perf_counter() - begun)


def of_openslide(slide: Slide) -> Pixels:
    with open_slide(slide.path, reader="openslide") as other:
        return other.read_region(0, 0, 0, *other.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    image, table = field(), []
    with tempfile.TemporaryDirectory() as folder:
        files: list[tuple[str, Path, Callable[[Slide], Pixels]]] = []
        for name, path, pixels in make_files(Path(folder), image):
            files.append((name, path, lambda slide, pixels=pixels: pixels))
        files += (
            [(path.name, path, of_openslide) for path in sorted(options.slides.iterdir())] if options.slides else []
        )
        print("| file | reader | size | levels | mpp | z | colours, largest (mean) | tiles/s |")
        print("|---|---|---|---|---|---|---|---|")
        for name, path, truth in files:
            for reader in reader_names():
                cells = row(path, reader, truth)
                table.append({"file": name, "reader": reader, **cells})
                if "refused" not in cells:
                    shown = [cells[key] for key in ("size", "levels", "mpp", "z")]
                    colours = f"{cells['largest']} ({cells['mean']})"
                    print(
                        "|",
                        " | ".join(map(str, [name, reader, *shown, colours, cells["tiles_per_s"]])),
                        "|",
                        flush=True,
                    )
                elif reader in ("openslide", "tiff", "tiffslide", "fastslide") and not refused_by_kind(
                    cells["refused"]
                ):
                    print(f"| {name} | {reader} | refused: {cells['refused'][:110]} | | | | | |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


def refused_by_kind(reason: str) -> bool:
    """The reader is for other kinds of files altogether: no line in the table."""
    return any(words in reason for words in ("not a ", "a folder", "needs the package", "File format not supported"))


if __name__ == "__main__":
    main()
