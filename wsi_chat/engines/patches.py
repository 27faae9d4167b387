"""Pictures as the patches of a Qwen-VL vision tower: what an image processor makes of them, to the bit, and faster.

A processor of this family turns each pixel into a number that depends on its value and channel alone, and then cuts the
picture into patches. So what it makes of the 256 values of each channel is read off it once, and proved on another
picture; afterwards a table and one copy do its work. A processor that does anything else is left to do it itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilers.buffers import Buffers

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

CHANNELS, LEVELS = 3, 256
IDLE_BYTES = 48 * 2**20
"""Memory of patches that waits for the next pictures: some thirty of 512 px in bytes."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a picture is cut: ``patch`` px squares, ``merge`` x ``merge`` of them in a row, ``frames`` times the same."""

    patch: int
    merge: int
    frames: int

    @property
    def multiple(self) -> int:
        """What a picture's sides are multiples of, px."""
        return self.patch * self.merge

    def fits(self, image: Image.Image) -> bool:
        """Whether a picture can be cut as it is."""
        return image.mode == "RGB" and image.width % self.multiple == 0 and image.height % self.multiple == 0

    def grid(self, image: Image.Image) -> tuple[int, int, int]:
        """The (t, h, w) grid of patches of a picture that fits."""
        return 1, image.height // self.patch, image.width // self.patch

    def ordered(self, planes: list[NDArray[Any]], out: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Patches (number, channels * frames * patch * patch) of three planes (height, width), of their dtype.

        Args:
            out: memory to write them to, as many bytes as they take.
        """
        (height, width), dtype = planes[0].shape, planes[0].dtype
        rows, columns, m, p = height // self.multiple, width // self.multiple, self.merge, self.patch
        # a row of a patch is moved as one piece: several times faster than number by number
        row = np.dtype((np.void, p * dtype.itemsize))
        if out is None:
            out = np.empty(self.frames * sum(plane.nbytes for plane in planes), np.uint8)
        patches = out.view(row).reshape(rows, columns, m, m, CHANNELS, self.frames, p)
        for channel, plane in enumerate(planes):
            squares = np.ascontiguousarray(plane).view(row).reshape(rows, m, p, columns, m).transpose(0, 3, 1, 4, 2)
            patches[:, :, :, :, channel] = squares[:, :, :, :, None]
        return out.view(dtype).reshape(rows * columns * m * m, -1)


class PatchTable:
    """What one processor makes of each value of each channel, and how it cuts.

    Args:
        values: (3, 256), a tensor of the processor's dtype.
    """

    def __init__(self, cut: Cut, values: Tensor) -> None:
        self.cut = cut
        self.dtype = values.dtype
        bits = _bits(values)
        # a processor that leaves the numbers to the model gives them as they are
        self._tables = None if _is_plain(values) else [np.ascontiguousarray(row) for row in bits]
        self._buffers = Buffers(idle_bytes=IDLE_BYTES)

    def patches(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(patches, values) of a picture (height, width, 3) that `Cut.fits`; the dtype is the processor's."""
        import cv2
        import torch

        planes: list[Any] = list(cv2.split(pixels))
        if self._tables is not None:
            planes = [cv2.LUT(plane, table) for plane, table in zip(planes, self._tables, strict=True)]
        array = self._buffers.empty((self.cut.frames * sum(plane.nbytes for plane in planes),))
        shape = self.cut.ordered(planes, array).shape
        return torch.from_numpy(array).view(self.dtype).view(shape)


def read_off(process: Callable[[Image.Image], Tensor], cut: Cut, size: tuple[int, int]) -> PatchTable | None:
    """The table of a processor, or None where it is not one that a table can stand for.

    Args:
        process: an RGB picture -> the processor's patches.
        size: width and height of a picture that the processor does not resize, multiples of `Cut.multiple`.
    """
    import torch

    probe, other = (_probe(size, seed) for seed in (0, 1))
    given = process(probe)
    levels = cut.ordered(list(np.moveaxis(np.asarray(probe), 2, 0)))
    if given.shape != levels.shape or given.element_size() > 4:
        return None
    bits = _bits(given).reshape(len(levels), CHANNELS, -1)
    values = np.zeros((CHANNELS, LEVELS), bits.dtype)
    for channel in range(CHANNELS):
        values[channel, levels.reshape(bits.shape)[:, channel]] = bits[:, channel]
    table = PatchTable(cut, torch.from_numpy(values).view(given.dtype))
    same = all(np.array_equal(_bits(table.patches(np.asarray(each))), _bits(process(each))) for each in (probe, other))
    return table if same else None


def _probe(size: tuple[int, int], seed: int) -> Image.Image:
    """A picture in which every channel has every value, in no order."""
    from PIL import Image

    width, height = size
    random = np.random.default_rng(seed)
    planes = [random.permutation(np.arange(width * height) % LEVELS) for _ in range(CHANNELS)]
    return Image.fromarray(np.stack(planes, axis=-1).reshape(height, width, CHANNELS).astype(np.uint8))


def _bits(values: Tensor) -> NDArray[Any]:
    """A tensor's numbers in a dtype that OpenCV and numpy know: as they are, or those of 16 bits as their bits."""
    import torch

    known = values.dtype in (torch.uint8, torch.float32)
    bits: NDArray[Any] = (values if known else values.contiguous().view(torch.uint16)).numpy()
    return bits


def _is_plain(values: Tensor) -> bool:
    import torch

    return values.dtype == torch.uint8 and bool((values == torch.arange(LEVELS, dtype=torch.uint8)).all())
