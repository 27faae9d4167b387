"""maps.zarr: what is known of each tile, as zarr v3 arrays on the tile grid with their level-0 transform."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np

from wsi_chat.atomic import replacing
from wsi_chat.errors import SettingError
from wsi_chat.schema import SlideRecord, TileStatus, TileVerdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_PLANNED = 0
STATUS_CODES: dict[str, int] = {
    "not_planned": NOT_PLANNED,
    **{status: code for code, status in enumerate(get_args(TileStatus), start=1)},
}
UNITS = {
    "p_screen": "probability of the screening question's positive option, uncalibrated",
    "p_abnormal": "the same where that question is about abnormality",
    "cellularity": "foreground area fraction, 0..1",
    "focus": "variance of the Laplacian of luminance, arbitrary",
    "status": "code, see status_codes",
    "x": "left edge of a column's tiles, level-0 px",
    "y": "top edge of a row's tiles, level-0 px",
    "tile_index": "index of the tile in its plan (t000042 has 42), -1 where no tile was planned",
}
CHUNK = 512  # grid cells a side


class PlanGeometry(Protocol):
    """What of a `tilers.TilePlan` the maps need: (rows, columns) of its full grid, and the stride in level-0 px."""

    @property
    def grid_shape(self) -> tuple[int, int]: ...

    @property
    def stride(self) -> float: ...


def write_maps_zarr(
    plan: PlanGeometry,
    tile_verdicts: Sequence[TileVerdict],
    path: Path | str,
    *,
    slide: SlideRecord,
    outline: Sequence[Sequence[tuple[float, float]]] = (),
) -> Path:
    """Write a zarr v3 group with arrays [row, column]: p_screen, p_abnormal, cellularity, focus (float32, NaN where
    missing), status (uint8), tile_index (int32), and the coordinates x [column] and y [row].

    A tile in row r and column c covers ``x[c], y[r]`` to ``x[c] + tile_width, y[r] + tile_height`` in level-0
    pixels. The group's attributes hold the same as an affine transform (origin, stride, tile size; x before y),
    which is exact but for the last row and column: a plan shifts these inward, to end at the slide's edge; and
    ``outline``, the rings of the deposit in level-0 pixels.

    Raises:
        OutputError: if the folder cannot be written.
        SettingError: if a tile does not belong to the plan's grid, or is given twice.
    """
    import zarr

    rows, columns = plan.grid_shape
    side = tile_verdicts[0].tile if tile_verdicts else None
    tile_size = (side.width, side.height) if side else (0, 0)
    x = _starts(columns, plan.stride, tile_size[0], slide.width)
    y = _starts(rows, plan.stride, tile_size[1], slide.height)
    values = {
        name: np.full((rows, columns), np.nan, dtype=np.float32)
        for name in ("p_screen", "p_abnormal", "cellularity", "focus")
    }
    status = np.full((rows, columns), NOT_PLANNED, dtype=np.uint8)
    index = np.full((rows, columns), -1, dtype=np.int32)
    for verdict in tile_verdicts:
        tile = verdict.tile
        if not 0 <= tile.index < rows * columns or index.flat[tile.index] >= 0:
            raise SettingError(
                f"Tile {tile.id} is given twice, or is none of the {rows} x {columns} tiles of the plan.",
                hint="Give the plan that the tiles come from.",
            )
        cell = divmod(tile.index, columns)
        y[cell[0]], x[cell[1]] = tile.y, tile.x
        index[cell], status[cell] = tile.index, STATUS_CODES[verdict.status]
        known = (verdict.p_screen, verdict.p_abnormal, tile.cellularity, verdict.focus)
        for array, value in zip(values.values(), known, strict=True):
            if value is not None:
                array[cell] = value
    arrays: dict[str, NDArray[Any]] = {**values, "status": status, "tile_index": index, "x": x, "y": y}
    attributes: dict[str, Any] = {
        "axes": ["row", "column"],
        "transform": {
            "unit": "level-0 px",
            "order": ["x", "y"],
            "origin": [0, 0],
            "stride": [plan.stride, plan.stride],
            "tile_size": list(tile_size),
            "last_shifted_inward": True,
        },
        "slide_size": [slide.width, slide.height],
        "mpp": slide.mpp,
        "outline": [[[float(x), float(y)] for x, y in ring] for ring in outline],
        "units": UNITS,
        "status_codes": STATUS_CODES,
    }
    with replacing(path) as scratch:
        group = zarr.open_group(scratch, mode="w", zarr_format=3, attributes=attributes)
        for name, array in arrays.items():
            chunks = tuple(max(1, min(CHUNK, side)) for side in array.shape)
            missing = {"uint8": NOT_PLANNED, "int32": -1, "int64": 0}.get(str(array.dtype), float("nan"))
            stored = group.create_array(
                name,
                shape=array.shape,
                dtype=array.dtype,
                chunks=chunks,
                fill_value=missing,
                dimension_names={"x": ("column",), "y": ("row",)}.get(name, ("row", "column")),
                attributes={"unit": UNITS[name]},
            )
            if array.size:
                stored[...] = array
    return Path(path)


def read_outline(path: Path | str) -> list[list[tuple[float, float]]]:
    """The rings of the deposit in level-0 pixels, as `write_maps_zarr` stored them; none where it did not."""
    import zarr

    try:
        stored: Any = zarr.open_group(str(path), mode="r").attrs.get("outline", [])
        return [[(float(x), float(y)) for x, y in ring] for ring in stored]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _starts(count: int, stride: float, side: int, extent: int) -> NDArray[Any]:
    """Where each column or row starts, in level-0 px; the last is shifted inward where it would cross the edge."""

    starts = np.round(np.arange(count) * stride).astype(np.int64)
    if count > 1:
        starts[-1] = min(int(starts[-1]), extent - side)
    return starts
