"""The model's own image features of a slide's tiles, kept in its run folder as ``features.zarr``.

Row i of the array ``features`` is tile i of the grid (t000042 has 42); a tile without features is NaN, never zero.
What is stored belongs to one scan, one tiling and one model, which the attributes name, and is not read as another's.
A chunk is written whole or not at all, so a run that is killed keeps what it stored.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.atomic import scratch_folder
from wsi_chat.engines.protocol import FEATURES
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.schema import Provenance, Report, SlideRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregators.features import ImageFeatures

    Rows = NDArray[np.float32]

log = logging.getLogger(__name__)

ARRAY = "features"
FORMAT, VERSION = "wsi-chat tile features", 1
CHUNK_BYTES = 2**20
BLOCK_BYTES = 2**20
"""Rows wait in memory until there are this many bytes of them; a kill costs no more."""


def identity_of(slide: SlideRecord, provenance: Provenance) -> dict[str, Any]:
    """All that determines what the features of tile i are: the scan, how it is tiled and read, and who looks at it."""
    return {
        "fingerprint": slide.fingerprint,
        "reader": slide.reader,
        "mpp": slide.mpp,
        "tile_px": provenance.tile_px,
        "tile_mpp": provenance.tile_mpp,
        "overlap": provenance.overlap,
        "model": provenance.model.revision,
        "dialect": f"{provenance.model.dialect} {provenance.model.prompts_sha256[:16]}",
        "kind": FEATURES,
    }


class FeatureStore:
    """The features of one run, as they come. One writer at a time: the run's journal is locked before.

    Args:
        folder: the slide's run folder.
        of: see `identity_of`.
        tiles: tiles of the full grid.
        width: features of a tile.
        overwrite: forget what is there.

    What is there of another identity moves to ``superseded/``; what is damaged is set aside, with a warning.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(
        self, folder: SlideFolder, *, of: dict[str, Any], tiles: int, width: int, overwrite: bool = False
    ) -> None:

        self.path = folder.features_path
        self._superseded = folder.superseded_path / self.path.name
        self.width = width
        self.kind, self.model = str(of["kind"]), str(of["model"])
        self._index: list[int] = []
        self._rows: list[Rows] = []
        try:
            if overwrite:
                shutil.rmtree(self.path, ignore_errors=True)
            earlier = self._earlier(of, (tiles, width))
            if earlier is None:
                self._array = _created(self.path, of, (tiles, width))
                self._stored = np.zeros(tiles, dtype=np.bool_)
            else:
                self._array, self._stored = earlier
        except OSError as error:
            raise self._refused(error) from error

    def _earlier(self, of: dict[str, Any], shape: tuple[int, int]) -> tuple[Any, NDArray[np.bool_]] | None:
        """The array that is there with its finite rows, where it is whole and of this identity."""
        if not os.path.lexists(self.path):
            return None
        try:
            array, attributes = _opened(self.path, mode="r+")
            if attributes["of"] != of or tuple(array.shape) != shape:
                self._move(self._superseded)
                return None
            for partial in self.path.rglob("*.partial"):
                partial.unlink(missing_ok=True)  # of a write that a kill cut off
            return array, _finite_rows(array)
        except PermissionError:
            raise
        except Exception as error:
            number = 1
            while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
                number += 1
            self._move(aside)
            log.warning("%s is damaged (%s); moved to %s, computed anew", self.path, _one_line(error), aside.name)
            return None

    def _move(self, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        self.path.rename(target)

    def __contains__(self, tile: int) -> bool:
        """Whether the features of this tile of the grid are stored, or wait to be."""
        return bool(self._stored[tile])

    def put(self, tiles: list[int], rows: Rows) -> None:
        """Store (len(tiles), width) features. Rows with a value that is not a number are left out.

        Raises:
            OutputError: they cannot be written.
        """

        good = np.flatnonzero(np.isfinite(rows).all(axis=1))
        if len(good) < len(tiles):
            log.warning("features of %d tiles are not all numbers; they are left out", len(tiles) - len(good))
        stored = [tiles[place] for place in good]
        self._index += stored
        self._rows.append(rows[good].astype(np.float32))
        self._stored[stored] = True
        if 4 * self.width * len(self._index) >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OutputError."""

        if not self._index:
            return
        order = np.argsort(self._index)
        values = np.concatenate(self._rows)[order]
        try:
            self._array.set_orthogonal_selection((np.array(self._index)[order], slice(None)), values)
        except OSError as error:
            raise self._refused(error) from error
        self._index, self._rows = [], []

    def read(self) -> ImageFeatures:
        """What is stored, for an aggregator."""
        self.flush()
        return _as_evidence(self._array, self.path, model=self.model)

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path}: cannot be written ({error.strerror or error}).",
            hint="Check the folder's permissions and the free space.",
        )


def _created(path: Path, of: dict[str, Any], shape: tuple[int, int]) -> Any:
    """A new array, made beside its place and moved into it, so that there is none without its attributes."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    attributes = {
        "format": FORMAT,
        "version": VERSION,
        "model": of["model"],
        "kind": of["kind"],
        "names": [f"image:{i}" for i in range(shape[1])],
        "rows": "row i is tile i of the grid (t000042 has 42); NaN where it has no features",
        "of": of,
    }
    with scratch_folder(path.parent) as part:
        scratch = part / path.name
        group = zarr.open_group(str(scratch), mode="w", zarr_format=3, attributes=attributes)
        group.create_array(
            ARRAY,
            shape=shape,
            dtype="float32",
            chunks=(max(1, min(shape[0], CHUNK_BYTES // (4 * shape[1]))), shape[1]),
            fill_value=float("nan"),
            dimension_names=("tile", "feature"),
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()],
        )
        scratch.rename(path)
    return _opened(path, mode="r+")[0]


def _opened(path: Path, *, mode: Literal["r", "r+"]) -> tuple[Any, dict[str, Any]]:
    """The array and its group's attributes; raises anything where it is no such store."""
    import zarr

    group: Any = zarr.open_group(str(path), mode=mode)
    attributes = dict(group.attrs)
    if (attributes.get("format"), attributes.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"it is no {FORMAT} of version {VERSION}")
    array = group[ARRAY]
    if len(array.shape) != 2 or str(array.dtype) != "float32" or len(attributes["names"]) != array.shape[1]:
        raise ValueError("its array has another shape than its attributes say")
    return array, attributes


def _finite_rows(array: Any) -> NDArray[np.bool_]:
    """(tiles,) whether a row is stored; reads every chunk once, one at a time, and so finds a damaged one."""

    found = np.zeros(array.shape[0], dtype=np.bool_)
    step = array.chunks[0]
    for start in range(0, len(found), step):
        found[start : start + step] = np.isfinite(array[start : start + step]).all(axis=1)
    return found


def _as_evidence(array: Any, path: Path, *, model: str) -> ImageFeatures:
    from aggregators.features import ImageFeatures

    def read(tiles: NDArray[np.intp]) -> Rows:

        order, back = np.unique(tiles, return_inverse=True)
        try:
            found: Rows = np.asarray(array.get_orthogonal_selection((order, slice(None))))[back]
        except Exception as error:
            raise OutputError(f"{path} cannot be read: {_one_line(error)}.", hint="Analyze the slide again.") from error
        return found

    return ImageFeatures(width=array.shape[1], kind=FEATURES, model=model, read=read)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def read_features(folder: SlideFolder, report: Report) -> ImageFeatures:
    """The image features of a finished run, read from disk tile by tile as they are wanted.

    Raises:
        SettingError: the folder holds none, or those of another scan, tiling or model than its report.
        OutputError: they are damaged.
    """
    hint = "Analyze it again with --features: known answers are not asked again."
    path = folder.features_path
    if not path.exists():
        raise SettingError(f"{folder.id} holds no image features.", hint=hint)
    try:
        array, attributes = _opened(path, mode="r")
        of = dict(attributes["of"])
    except Exception as error:
        raise OutputError(f"{path} is damaged: {_one_line(error)}.", hint=hint) from error
    wanted = identity_of(report.slide, report.provenance)
    for name in wanted:
        if of.get(name) != wanted[name]:
            raise SettingError(
                f"the image features of {folder.id} are not those of its report: {name} {of.get(name)!r},"
                f" and not {wanted[name]!r}.",
                hint=hint,
            )
    return _as_evidence(array, path, model=str(of["model"]))
