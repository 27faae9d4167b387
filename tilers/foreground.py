"""Where the cells are: every spot that differs from the slide's background, down to a single cell.

The slide is read once, in pieces (of a stack every focal plane, so that no cell is lost for its depth), at about
FINE_UM µm/px; of each CELL_UM cell the darkest and the brightest spot count, so that one small cell does not drown in
the mean of the glass around it. No object is too small. What cannot be read counts as foreground: its tiles are
tried, and recorded as unreadable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tilers.background import TEXTURE, Background, estimate_background, texture
from tilers.cell_grid import ASSUMED_MPP, CellGrid, read_grid
from tilers.deposit import Deposit, find_deposit
from wsi_chat.errors import SettingError, SlideUnreadable
from wsi_chat.progress import Progress, no_progress
from wsi_chat.schema import Box, Remark

if TYPE_CHECKING:
    from tilers.slide import Slide

# Absorbance (log10) above background. Pale superficial cytoplasm in a Pap stain has 0.1 to 0.2, nuclei 0.5 and
# more; glass and mountant vary by about 0.03.
ABSORBANCE = 0.08
SIGNAL = 12.0  # grey levels above a dark background
UNSURE = 0.6  # from this share of the threshold on, a cell is not called empty


@dataclass(frozen=True)
class Foreground:
    """A grid of square cells over the slide.

    Attributes:
        mask: (rows, columns) bool, True where something differs from the background.
        unsure: (rows, columns) bool, cells that differ too little to be called cells and too much to be called empty
            glass; all of them where too little empty glass is in sight to know its colour.
        cell: side of a grid cell in level-0 px (cell (r, c) covers x from c * cell to (c + 1) * cell).
        strength: (rows, columns) float32, the strongest absorbance (bright background) or signal / 255 (dark).
        scanned, unreadable: (rows, columns) bool; cells outside the scan are never foreground.
        kind: what the background is. ``background_rgb``: its colour as estimated.
        deposit: outline of the area with cells, where one stands out.
        is_blank: nothing differs from the background (an all-white or all-black slide).
        method: how it was found, for the report.
    """

    mask: NDArray[np.bool_]
    cell: float
    size: tuple[int, int]
    strength: NDArray[np.float32]
    scanned: NDArray[np.bool_]
    unreadable: NDArray[np.bool_]
    kind: Literal["bright", "dark"]
    background_rgb: tuple[int, int, int]
    deposit: Deposit | None
    is_blank: bool
    method: Remark
    notes: tuple[Remark, ...] = field(default=())
    unsure: NDArray[np.bool_] | None = None

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        return _summed(self.mask)

    @cached_property
    def _unsure_sums(self) -> NDArray[np.float64] | None:
        return None if self.unsure is None else _summed(self.unsure)

    @cached_property
    def _scanned_sums(self) -> NDArray[np.float64]:
        return _summed(self.scanned)

    def fraction(self, box: Box) -> float:
        """Share of a box (level-0 px) that is foreground, 0..1; the part beyond the slide counts as none.

        Any foreground cell that the box touches makes it positive.
        """
        inside = box.clipped(Box(0, 0, *self.size))
        if inside is None or box.area == 0:
            return 0.0
        touched, cells = self._count(inside, self._sums)
        return float(touched / cells) * min(1.0, inside.area / box.area) if touched else 0.0

    def is_unsure(self, box: Box) -> bool:
        """Whether a box (level-0 px) touches a cell that is neither foreground nor certainly empty glass."""
        inside = box.clipped(Box(0, 0, *self.size))
        if inside is None or self._unsure_sums is None:
            return False
        return self._count(inside, self._unsure_sums)[0] > 0

    def is_scanned(self, box: Box) -> bool:
        """Whether a box (level-0 px) touches the scanned area."""
        inside = box.clipped(Box(0, 0, *self.size))
        return inside is not None and self._count(inside, self._scanned_sums)[0] > 0

    def _count(self, inside: Box, sums: NDArray[np.float64]) -> tuple[float, int]:
        rows, columns = self.mask.shape
        # the level of the mask may end a little before the slide: then its last cells stand for the rest
        c0, r0 = min(columns - 1, int(inside.x0 // self.cell)), min(rows - 1, int(inside.y0 // self.cell))
        c1, r1 = min(columns, -int(-inside.x1 // self.cell)), min(rows, -int(-inside.y1 // self.cell))
        return sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0], (r1 - r0) * (c1 - c0)

    @property
    def area_fraction(self) -> float:
        """Foreground as a share of the scanned area."""
        scanned = int(self.scanned.sum())
        return float(self.mask.sum() / scanned) if scanned else 0.0


def _summed(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(rows + 1, columns + 1): how many cells of the mask lie above and to the left of a corner."""
    return np.asarray(cv2.integral(mask.view(np.uint8), sdepth=cv2.CV_64F), np.float64)


def find_foreground(
    slide: Slide,
    *,
    mask: bool = True,
    absorbance: float = ABSORBANCE,
    signal: float = SIGNAL,
    workers: int = 2,
    progress: Progress = no_progress,
) -> Foreground:
    """Find what is worth looking at.

    Args:
        mask: False takes the whole scan (within the bounds that the file states) without reading it.
        absorbance: least log10 absorbance above a bright background, in any channel.
        signal: least grey levels above a dark background, in any channel.
        workers: reading threads; each holds one piece of 2048 px.
        progress: told as stage ``mask`` how many pieces of the slide were read.

    Raises:
        SlideUnreadable: nothing of the slide can be read.
        SettingError: a threshold is not positive.
    """
    if absorbance <= 0 or signal <= 0:
        raise SettingError(f"absorbance is {absorbance:g} and signal {signal:g}.", hint="Both must be above 0.")
    if not mask:
        return _everything(slide)
    grid = read_grid(slide, workers, progress)
    if not (grid.scanned & ~grid.unreadable).any():
        if grid.unreadable.any():
            raise SlideUnreadable(
                f"Nothing of {slide.name} can be read: {grid.error}",
                hint="Copy the file again from its source; it looks damaged.",
            )
        return _blank(slide, grid, Remark("foreground.not_scanned"))
    structure = texture(grid.low, grid.high)
    ground = estimate_background(grid.mean, grid.scanned & ~grid.unreadable, flat=structure <= TEXTURE)
    strength = ground.strength(grid.low, grid.high)
    strength[~grid.scanned] = 0
    threshold = ground.threshold(absorbance=absorbance, signal=signal)
    stained = (strength > threshold) & grid.scanned
    if ground.kind == "bright":
        stained |= (structure > threshold) & grid.scanned
    if ground.fill is not None:
        stained &= ~ground.fill
    notes = []
    unsure = (strength > UNSURE * threshold) & grid.scanned & ~stained
    if ground.kind == "bright":
        unsure |= (structure > UNSURE * threshold) & grid.scanned & ~stained
    if not ground.certain:
        unsure = grid.scanned & ~stained
        notes.append(Remark("foreground.no_glass"))
    if ground.fill is not None:
        unsure &= ~ground.fill
    blank = not stained.any() and not unsure.any()

    if grid.unreadable.any():
        notes.append(Remark("foreground.unreadable", share=float(grid.unreadable.sum() / grid.unreadable.size)))
    return Foreground(
        mask=stained | grid.unreadable,
        cell=grid.cell,
        size=slide.size,
        strength=strength,
        scanned=grid.scanned,
        unreadable=grid.unreadable,
        kind=ground.kind,
        background_rgb=ground.rgb,
        deposit=None
        if blank
        else find_deposit(stained, cell=grid.cell, cell_um=grid.cell * (slide.mpp or ASSUMED_MPP)),
        is_blank=blank and not grid.unreadable.any(),
        method=Remark(
            "foreground.bright" if ground.kind == "bright" else "foreground.dark",
            rgb=str(ground.rgb),
            threshold=float(threshold),
            cell=grid.cell * (slide.mpp or ASSUMED_MPP),
        ),
        notes=tuple(notes),
        unsure=unsure,
    )


def _everything(slide: Slide) -> Foreground:
    width, height = slide.size
    cell = max(1.0, max(width, height) / 4096)
    rows, columns = max(1, -int(-height // cell)), max(1, -int(-width // cell))
    inside = np.ones((rows, columns), bool)
    if slide.bounds is not None:
        b = slide.bounds
        inside[:] = False
        inside[int(b.y0 // cell) : -int(-b.y1 // cell), int(b.x0 // cell) : -int(-b.x1 // cell)] = True
    return Foreground(
        mask=inside,
        cell=cell,
        size=slide.size,
        strength=inside.astype(np.float32),
        scanned=inside,
        unreadable=np.zeros_like(inside),
        kind="dark" if sum(slide.background_rgb) < 192 else "bright",
        background_rgb=slide.background_rgb,
        deposit=None,
        is_blank=False,
        method=Remark("foreground.none"),
    )


def _blank(slide: Slide, grid: CellGrid, why: Remark) -> Foreground:
    nothing = np.zeros(grid.scanned.shape, bool)
    return Foreground(
        mask=nothing,
        cell=grid.cell,
        size=slide.size,
        strength=nothing.astype(np.float32),
        scanned=grid.scanned,
        unreadable=grid.unreadable,
        kind="bright",
        background_rgb=slide.background_rgb,
        deposit=None,
        is_blank=True,
        method=why,
    )


__all__ = ["Background", "Deposit", "Foreground", "find_foreground"]
