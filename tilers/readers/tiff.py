"""TIFFs that follow no scanner's own layout, OME-TIFF and ImageJ's among them: pyramids, channels, focal stacks.

Every piece is decoded strictly (see ``tilers.segments``), whatever the sample format. Pieces that were never written
are transparent; those beyond the end of a cut-off file make the read fail: neither turns black. The scan is chosen
among the file's images by OME metadata, names and sizes; labels and macros are never opened.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tilers.channels import ChannelStatement, Mixing, choose_mixing
from tilers.orientation import UPRIGHT, upright
from tilers.properties import allow_listed, origin_of, tiff_resolution
from tilers.readers import Backend, Pixels
from tilers.readers.pieces import PieceBackend
from tilers.remote import RemotePath
from tilers.samples import (
    ALPHAS,
    BLACK_IS_ZERO,
    COLOURS,
    EIGHT_BITS,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    Depth,
    Numbers,
    depth_in_use,
    to_rgb,
)
from tilers.segments import JPEG, JPEG2000, TiffImage
from tilers.tiff_content import DESCRIPTION, Content, ratio, read_content
from tilers.tiff_header import read_tiff_header
from tilers.unreadable import REWRITE, UnsupportedKind
from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Remark

log = logging.getLogger(__name__)

SAMPLED_PIECES = 16  # of the coarsest level, to learn which values are in use
MAX_COARSEST_PIXELS = 40_000_000_000  # a level that must be read whole for the mask: 200,000 x 200,000 px
UNITS = {1: "none", 2: "inch", 3: "centimeter"}


class TiffBackend(PieceBackend):
    """One TIFF; a handle serves every thread, and a failed read leaves nothing behind."""

    vendor = "generic-tiff"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._numbers = Numbers()
        self._file = path.open("rb")
        self._read_at = path.read_range if isinstance(path, RemotePath) else self._read_local
        source = self._file if isinstance(path, RemotePath) else path
        try:
            self._tiff: Any = tifffile.TiffFile(source, _multifile=False)
        except BaseException:
            self._file.close()
            raise
        try:
            size = path.stat().st_size
            content = read_content(self._tiff, size)
            self._levels = content.levels
            for image in (image for level in self._levels for images in level.images for image in images):
                image.empty = self._buffers.empty
            self._describe(content, size)
            self._learn_colours(content)
            self.notes = (*self.notes, *self._numbers.opening_notes())
        except BaseException:
            self.close()
            raise

    def _describe(self, content: Content, file_size: int) -> None:
        first = self._levels[0].first
        self.orientation = int(getattr(first.page.tags.get(274), "value", UPRIGHT) or UPRIGHT)
        self.level_sizes = tuple(level.first.size for level in self._levels)
        width, height = first.size
        self.level_downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_sizes)
        self.planes = len(self._levels[0].images)
        coarsest = self._levels[-1].first
        if coarsest.width * coarsest.height > MAX_COARSEST_PIXELS:
            raise UnsupportedKind(
                f"it states {width:,} x {height:,} px and no smaller level; convert it to a pyramidal TIFF",
                hint=REWRITE,
            )
        x, y, unit = (getattr(first.page.tags.get(tag), "value", None) for tag in (282, 283, 296))
        x, y = ratio(x), ratio(y)
        tags = tiff_resolution(x, y, unit if unit is not None else 2) if x else None
        self.resolutions = (*content.resolutions, *([tags] if tags else []))
        self.properties = allow_listed(
            {
                "tiff.XResolution": None if x is None else f"{x:g}",
                "tiff.YResolution": None if y is None else f"{y:g}",
                "tiff.ResolutionUnit": UNITS.get(int(unit)) if unit is not None else None,
                **origin_of(getattr(first.page.tags.get(DESCRIPTION), "value", None)),
            }
        )
        cut = sum(int(i.cut.sum()) for level in self._levels for images in level.images for i in images)
        if all(bool(image.cut.all()) for image in self._levels[0].images[0]):
            raise SlideUnsupported(f"the file ends at byte {file_size}, before any of its pixels")
        self.notes = content.notes
        if cut:
            self.notes = (*self.notes, Remark("slide.tiles_cut_off", size=file_size, n=cut))

    @property
    def is_plain(self) -> bool:
        """8-bit grey or RGB, upright, of one plane: what libraries that know only the TIFF baseline show rightly."""
        first = self._levels[0].first
        simple = first.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) or (
            first.photometric == YCBCR and first.compression == JPEG
        )
        alone = self.planes == 1 and self._mixing is None and first.extra in ((), (1,), (2,))
        alone = alone and (not first.extra or first.photometric == RGB)
        return simple and alone and first.dtype == np.uint8 and first.bits == 8 and self.orientation == UPRIGHT

    # -------------------------------------------------------------------------------------- colours

    def _learn_colours(self, content: Content) -> None:
        """Decide how stored samples become RGB; where they are wider than 8 bits, by a sample of the coarsest level."""
        first = self._levels[0].first
        images = self._levels[-1].images[self.planes // 2]
        self._mixing: Mixing | None = None
        self._depth = EIGHT_BITS
        self._palette: NDArray[np.uint8] | None = None
        bits = content.significant_bits
        joined = len(images) > 1 or (first.photometric == BLACK_IS_ZERO and _are_channels(first))
        joined = joined and not (len(images) == 1 and self._is_padded_grey(images[0]))
        if joined:
            statements = [ChannelStatement(colour) for colour in content.colours]
            places = [(image, i) for image in images for i in range(image.samples)]
            self._mixing = choose_mixing(
                len(places),
                first.dtype,
                lambda channel: self._sample(places[channel][0])[:, places[channel][1]],
                statements,
                bits=bits,
            )
            if self._mixing.is_dark:
                self.background = (0, 0, 0)
            self.notes = (*self.notes, *self._mixing.notes)
            return
        if first.photometric == PALETTE:
            self._palette = _palette(first)
            return
        count = COLOURS.get(first.photometric, 1)
        others = first.samples - count - sum(kind in ALPHAS for kind in first.extra)
        if others > 0:
            self._note(Remark("slide.extra_samples", n=others))
        if first.bits < 8:
            self._depth = Depth(2**first.bits - 1)
        elif first.dtype != np.uint8:
            shown = self._sample(images[0])[..., :count]
            low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
            stated = _stated_maximum(first)
            if stated is not None and high <= stated < np.iinfo(np.uint16).max:
                bits = int(stated).bit_length()
            self._depth = depth_in_use(low, high, first.dtype, bits=bits)
            self._note(self._depth.note)
        # Refuse an interpretation that cannot be shown now, not at the first tile.
        to_rgb(np.zeros((1, 1, first.samples), np.uint8), first.photometric, extra=first.extra, palette=self._palette)

    def _is_padded_grey(self, image: TiffImage) -> bool:
        """Whether the second of two samples is a constant, as some writers pad grey with: no channel to mix."""
        if image.samples != 2:
            return False
        padding = self._sample(image)[:, 1]
        return bool(padding.min() == padding.max())

    def _note(self, note: Remark | None) -> None:
        if note is not None:
            self.notes = (*self.notes, note)

    def _sample(self, image: TiffImage) -> NDArray[Any]:
        """Values of up to SAMPLED_PIECES pieces, spread over an image: (n, samples)."""
        written = np.flatnonzero(~(image.absent | image.cut).ravel())
        chosen = written[np.linspace(0, len(written) - 1, min(SAMPLED_PIECES, len(written))).astype(int)]
        parts = []
        for place in chosen:
            try:
                part = self._decode(image, *divmod(int(place), image.columns))
            except Exception as error:
                log.debug("a piece that was to show the range of values cannot be decoded: %s", error)
                continue
            parts.append(part.reshape(-1, image.samples)[:: max(1, part.size // 200_000)])
            self._numbers.look(parts[-1])
        if not parts:
            return np.zeros((1, image.samples), image.dtype)
        return np.concatenate(parts)

    # -------------------------------------------------------------------------------------- pixels

    def grid(self, level: int) -> tuple[int, int, int, int]:
        image = self._levels[level].first
        return image.rows, image.columns, *image.piece

    def piece(self, plane: int, level: int, row: int, column: int) -> Pixels:
        return self._shown(self._levels[level].images[plane], row, column)

    def _shown(self, images: Sequence[TiffImage], row: int, column: int) -> Pixels:
        first = images[0]
        if first.cut[row, column]:
            raise OSError(f"tile ({row}, {column}) lies beyond the end of the file")
        if all(image.absent[row, column] for image in images):
            height, width = first.piece_shape(row, column)
            return np.zeros((height, width, 4), np.uint8)
        parts = [self._decode(image, row, column) for image in images]
        for part in parts:
            self._numbers.look(part)
        if self._mixing is not None:
            layers = [part[..., i] for part in parts for i in range(part.shape[2])]
            return self._mixing([layers[i] for i in self._mixing.shown])
        if self._palette is not None:
            return to_rgb(parts[0].astype(np.uint8), first.photometric, palette=self._palette)
        if first.photometric == YCBCR and first.compression in (JPEG, *JPEG2000):  # decoded to RGB already
            return to_rgb(parts[0], RGB)
        samples = self._depth.shrink(parts[0])
        shown = to_rgb(samples, first.photometric, extra=first.extra, black_and_white=_black_and_white(first))
        if first.dtype.kind == "f":
            unscanned = np.isnan(parts[0]).any(axis=2)  # no number is no brightness: transparent, not black
            if unscanned.any():
                alpha = shown[..., 3] if shown.shape[2] == 4 else 255
                return np.dstack([shown[..., :3], np.where(unscanned, 0, alpha).astype(np.uint8)])
        return shown

    def reading_notes(self) -> tuple[Remark, ...]:
        return self._numbers.reading_notes()

    def _decode(self, image: TiffImage, row: int, column: int) -> NDArray[Any]:
        data = []
        for layer in range(image.layers):
            index = (layer * image.rows + row) * image.columns + column
            count = int(image.counts[index])
            part = self._read_at(int(image.offsets[index]), count)
            if len(part) < count:
                raise OSError(f"tile ({row}, {column}) lies beyond the end of the file")
            data.append(part)
        if not any(data):  # a channel that was left out because it is empty
            return np.zeros((*image.piece_shape(row, column), image.samples), image.dtype)
        if not all(data):
            raise OSError(f"tile ({row}, {column}) lacks one of its planes")
        return image.decode(data, row, column)

    def _read_local(self, start: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, start)

    def close(self) -> None:
        self._tiff.close()
        self._file.close()


def _are_channels(image: TiffImage) -> bool:
    """Several grey samples per pixel, none of them alpha: channels, stored together."""
    return image.samples > 1 and not any(kind in ALPHAS for kind in image.extra)


def _palette(image: TiffImage) -> NDArray[np.uint8]:
    """(256, 3) colours of a palette image; TIFF stores them with 16 bits."""
    colours = np.asarray(getattr(image.page.tags.get(320), "value", ()), np.uint32)
    if image.bits > 8 or colours.size != 3 * 2**image.bits:
        raise UnsupportedKind("its photometric interpretation is palette, but its colour map does not fit its depth")
    table = colours.reshape(3, -1).T
    eight = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
    return np.pad(eight, ((0, 256 - len(eight)), (0, 0)))


def _stated_maximum(image: TiffImage) -> float | None:
    """MaxSampleValue (281) or SMaxSampleValue (341), where the file states one."""
    for tag in (281, 341):
        value = getattr(image.page.tags.get(tag), "value", None)
        if value is not None:
            return float(max(value) if isinstance(value, tuple) else value)
    return None


def _black_and_white(image: TiffImage) -> NDArray[np.float64] | None:
    """ReferenceBlackWhite (532) as (3, 2), or None."""
    value = getattr(image.page.tags.get(532), "value", None)
    if value is None or len(value) not in (6, 12):
        return None
    numbers = np.asarray(value, np.float64)
    if len(value) == 12:  # numerators and denominators
        numbers = numbers[::2] / np.where(numbers[1::2] == 0, 1, numbers[1::2])
    return numbers.reshape(3, 2)


def check_plain_layout(path: Path, level_sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse a generic TIFF of which another reader would show other levels, or pixels in the wrong colours.

    Raises:
        SlideUnsupported: see above, or this reader refuses the file itself.
    """
    with closing(TiffBackend(path)) as backend:
        if not backend.is_plain:
            raise SlideUnsupported("its sample format is more than 8-bit grey or RGB; the reader tiff shows it")
        if tuple(level_sizes) != tuple(backend.level_sizes):
            raise SlideUnsupported("its levels lie where only the reader tiff finds them")


def open_backend(path: Path) -> Backend:
    """Open a generic TIFF, an OME-TIFF or an ImageJ TIFF.

    Raises:
        SlideUnsupported: not a TIFF, a scanner's own kind, or one whose pixels cannot be shown faithfully.
    """
    header = read_tiff_header(path)
    if header is None:
        raise SlideUnsupported("not a TIFF file")
    if header.objection:
        raise SlideUnsupported(header.objection)
    if header.vendor:
        raise SlideUnsupported(f"a TIFF of {header.vendor}'s own layout")
    try:
        backend = TiffBackend(path)
    except (SlideUnsupported, MemoryError):
        raise
    except Exception as error:  # tifffile raises many kinds on damaged headers
        raise SlideUnsupported(f"{type(error).__name__}: {error}") from error
    if header.goes_on is not None:
        backend.notes = (
            *backend.notes,
            Remark("slide.directories_cut_off", at=header.goes_on, size=path.stat().st_size),
        )
    return upright(backend, backend.orientation)
