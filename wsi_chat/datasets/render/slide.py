"""Writes a synthetic slide as a tiled pyramidal TIFF or OME-Zarr, with its truth beside it, tile by tile."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import zarr

from wsi_chat.datasets.render.field import ABNORMAL, ORGANISMS, Cell
from wsi_chat.datasets.render.scene import Scene
from wsi_chat.datasets.render.stains import U8
from wsi_chat.schema import RENDERED_NOTE
from wsi_chat.terminology import load_system

STEP = 4  # each pyramid level is a quarter of the one above it, per axis
_NAMESPACE = uuid.UUID("6f0c2a3e-55d1-5c0e-9d2f-3a8f0f6f7b11")
_COLORS = {"abnormal": [200, 30, 30], "organism": [40, 60, 200]}


@dataclass(frozen=True, slots=True)
class SlideTruth:
    """What a rendered slide holds. Boxes and the deposit (centre x, y, radius) are in level-0 px.

    `cells` lists the abnormal cells and the organisms; `counts` counts everything annotated, normal cells too.
    """

    path: str
    width_px: int
    height_px: int
    mpp: float
    seed: int
    recipe: str
    abnormal: bool
    deposit: tuple[float, float, float]
    counts: dict[str, int]
    cells: tuple[Cell, ...]


def render_slide(
    path: str | Path,
    *,
    seed: int,
    width_px: int,
    height_px: int,
    mpp: float = 0.5,
    recipe: str = "normal",
    density: float = 250.0,
    abnormal_cells: int | None = None,
    preparation: str = "liquid",
    variety: float = 1.0,
    tile: int = 256,
    quality: int = 85,
) -> SlideTruth:
    """Renders a slide to `path` and writes `<stem>.truth.geojson` and `<stem>.truth.json` beside it.

    The suffix gives the format: `.tif`, `.tiff` or `.svs` a pyramidal JPEG TIFF that OpenSlide opens as `generic-tiff`,
    `.ome.zarr` an OME-Zarr 0.5. `recipe` is one of `SLIDE_RECIPES`; `density` counts events per mm2 of deposit;
    `abnormal_cells` fixes the number of abnormal cells (by default none, one for `sparse`, else 1.5 % of the events).
    `preparation` and `variety` are those of `Scene`. `tile` is a multiple of 16. Memory does not grow with the slide; a
    quarter-size copy is kept on disk meanwhile.
    Raises ValueError for an unknown suffix, recipe or tile size.
    """
    path = Path(path)
    if tile % 16 or tile <= 0:
        raise ValueError(f"tile {tile} is not a multiple of 16; use 256 or 512")
    kind = "zarr" if path.name.endswith(".ome.zarr") else path.suffix.lower()
    if kind not in ("zarr", ".tif", ".tiff", ".svs"):
        raise ValueError(f"{path.name!r} names no format; end it with .tiff, .svs or .ome.zarr")
    if abnormal_cells is None:
        mm2 = np.pi * (0.46 * min(width_px, height_px) * mpp / 1000) ** 2
        share = {"normal": 0.0, "hard_normal": 0.0, "organism": 0.0, "sparse": 0.0}.get(recipe, 0.015)
        abnormal_cells = 1 if recipe == "sparse" else max(round(density * mm2 * share), int(share > 0))
    scene = Scene(
        seed, width_px, height_px, mpp, recipe, density, abnormal_cells, preparation=preparation, variety=variety
    )
    counts: dict[str, int] = {}
    cells: list[Cell] = []
    partial = path.with_name(path.name + ".part")
    with tempfile.TemporaryDirectory(prefix=".render-", dir=path.parent) as scratch:
        pyramid = _Pyramid(scene, tile, Path(scratch), counts, cells)
        if kind == "zarr":
            _write_zarr(partial, pyramid, mpp)
        else:
            _write_tiff(partial, pyramid, mpp, quality)
        pyramid.close()
    if path.is_dir():
        shutil.rmtree(path)
    partial.replace(path)
    cells.sort(key=lambda cell: (cell.box[1] // tile, cell.box[0]))
    truth = SlideTruth(
        path.name, width_px, height_px, mpp, seed, recipe, any(cell.label in ABNORMAL for cell in cells), scene.deposit,
        dict(sorted(counts.items())), tuple(cells),
    )  # fmt: skip
    _write_truth(path, truth)
    return truth


class _Pyramid:
    """Level 0 from the scene, each further level from the one before, kept in a file and never whole in memory."""

    def __init__(self, scene: Scene, tile: int, scratch: Path, counts: dict[str, int], cells: list[Cell]) -> None:
        self.scene, self.tile, self.counts, self.cells = scene, tile, counts, cells
        self.shapes = [(scene.height, scene.width)]
        while max(self.shapes[-1]) > tile and min(self.shapes[-1]) >= 2 * STEP:
            height, width = self.shapes[-1]
            self.shapes.append((height // STEP, width // STEP))
        self._planes: list[np.memmap[Any, np.dtype[np.uint8]] | None] = [None]
        for number, (height, width) in enumerate(self.shapes[1:], start=1):
            shape = (height, width, 3)
            self._planes.append(np.memmap(scratch / f"level{number}.raw", dtype=np.uint8, mode="w+", shape=shape))

    def tiles(self, level: int) -> Iterator[tuple[int, int, U8]]:
        """Row-major full-size tiles of a level with their x, y; level n must be exhausted before level n + 1."""
        height, width = self.shapes[level]
        below = self._planes[level + 1] if level + 1 < len(self.shapes) else None
        for y in range(0, height, self.tile):
            for x in range(0, width, self.tile):
                tile = self._tile(level, x, y)
                if below is not None:
                    wide, high = min(self.tile, width - x) // STEP, min(self.tile, height - y) // STEP
                    if wide and high:
                        part = tile[: high * STEP, : wide * STEP]
                        small = cv2.resize(part, (wide, high), interpolation=cv2.INTER_AREA)
                        below[y // STEP : y // STEP + high, x // STEP : x // STEP + wide] = small
                yield x, y, tile

    def _tile(self, level: int, x: int, y: int) -> U8:
        if level == 0:
            height, width = self.shapes[0]
            seen = min(self.tile, width - x), min(self.tile, height - y)
            self.cells += self.scene.tally(x, y, *seen, self.counts)
            return self.scene.block(x, y, self.tile, self.tile)
        plane = self._planes[level]
        assert plane is not None
        part = np.asarray(plane[y : y + self.tile, x : x + self.tile])
        rest = ((0, self.tile - part.shape[0]), (0, self.tile - part.shape[1]), (0, 0))
        return np.pad(part, rest, mode="edge")

    def close(self) -> None:
        """Lets go of the files behind the levels."""
        self._planes.clear()


def _write_tiff(path: Path, pyramid: _Pyramid, mpp: float, quality: int) -> None:
    height, width = pyramid.shapes[0]
    with tifffile.TiffWriter(path, bigtiff=height * width > 2**31) as writer:
        for level, (high, wide) in enumerate(pyramid.shapes):
            per_cm = 1e4 / (mpp * width / wide)
            writer.write(
                (tile for _, _, tile in pyramid.tiles(level)),
                shape=(high, wide, 3),
                dtype=np.uint8,
                tile=(pyramid.tile, pyramid.tile),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
                software=False,
                description=None if level else RENDERED_NOTE,
            )


def _write_zarr(path: Path, pyramid: _Pyramid, mpp: float) -> None:
    root = zarr.open_group(path, mode="w", zarr_format=3)
    datasets = []
    side = pyramid.tile
    for level, (high, wide) in enumerate(pyramid.shapes):
        array = root.create_array(str(level), shape=(3, high, wide), chunks=(3, side, side), dtype=np.uint8)
        for x, y, tile in pyramid.tiles(level):
            part = tile[: high - y, : wide - x]
            array[:, y : y + part.shape[0], x : x + part.shape[1]] = part.transpose(2, 0, 1)
        scale = [1.0, mpp * pyramid.shapes[0][0] / high, mpp * pyramid.shapes[0][1] / wide]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in ("y", "x")]
    channels = [
        {"label": name, "color": color, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
        for name, color in (("R", "FF0000"), ("G", "00FF00"), ("B", "0000FF"))
    ]
    about: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [{"name": path.name.split(".")[0], "axes": axes, "datasets": datasets}],
        "omero": {"channels": channels},
    }
    root.attrs["ome"] = about
    root.attrs["description"] = RENDERED_NOTE


def _write_truth(path: Path, truth: SlideTruth) -> None:
    stem = path.name.removesuffix(".ome.zarr") if path.name.endswith(".ome.zarr") else path.stem
    features = [_feature(truth.seed, cell) for cell in truth.cells]
    collection = {"type": "FeatureCollection", "features": features}
    path.with_name(f"{stem}.truth.geojson").write_text(json.dumps(collection), encoding="utf-8")
    path.with_name(f"{stem}.truth.json").write_text(json.dumps(asdict(truth), indent=1), encoding="utf-8")


def _feature(seed: int, cell: Cell) -> dict[str, Any]:
    x0, y0, x1, y1 = cell.box
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    color = _COLORS["organism" if cell.label in ORGANISMS else "abnormal"]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, f"{seed}:{cell.label}:{x0:.3f},{y0:.3f},{x1:.3f},{y1:.3f}")),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": load_system("cervix").label(cell.label).name, "color": color},
            "measurements": {"visible": cell.visible},
        },
    }
