"""RGB pictures over arrays: what reads their pixels gets them without a copy, and their hash is worked out once.

Pillow keeps four bytes for each pixel of an RGB picture, so that each way into it and out of it is a pass over the
pixels. A tile that goes from a slide to a model needs neither: it is hashed, sent and cut into patches as the array
that the reader made. Only what draws, resizes or saves it makes Pillow's copy.
"""

from __future__ import annotations

import hashlib
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ArrayPicture(Image.Image):
    """A Pillow image in RGB over ``pixels`` (height, width, 3) uint8, which nobody changes afterwards.

    It is read-only as Pillow means it (`Image.readonly`): what is about to change it makes it a copy of its own first,
    and from then on it is as any other image.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        super().__init__()
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(f"pixels of shape {pixels.shape} and type {pixels.dtype} are no RGB picture")
        self._pixels = np.ascontiguousarray(pixels).view()
        self._pixels.flags.writeable = False
        self._mode, self._size = "RGB", (int(pixels.shape[1]), int(pixels.shape[0]))
        self._loaded = False
        self._sha256 = ""
        self.readonly = 1

    @classmethod
    def of(cls, image: Image.Image) -> ArrayPicture:
        """The pixels that an image in RGB shows now."""
        return cls(np.asarray(image))

    def load(self) -> Any:
        """Pillow's own storage: every method of Pillow that needs it calls this first, on any thread."""
        if not self._loaded:
            self.im = Image.fromarray(self._pixels).im
            self._loaded = True  # not before: another thread may look at any moment
        return super().load()

    @property
    def __array_interface__(self) -> dict[str, Any]:
        if not self.readonly:
            return super().__array_interface__
        shared: dict[str, Any] = self._pixels.__array_interface__
        return shared

    def tobytes(self, encoder_name: str = "raw", *args: Any) -> bytes:
        if self.readonly and (encoder_name, args) == ("raw", ()):
            return self._pixels.tobytes()
        return super().tobytes(encoder_name, *args)

    @property
    def sha256(self) -> str:
        """See `image_sha256`."""
        if not self.readonly:
            return _sha256(self, self.tobytes())
        if not self._sha256:
            self._sha256 = _sha256(self, self._pixels.data)
        return self._sha256

    def __eq__(self, other: object) -> bool:
        """As Pillow compares two images, whether or not they are over arrays."""
        if not isinstance(other, Image.Image):
            return NotImplemented
        same = (self.mode, self.size, self.info) == (other.mode, other.size, other.info)
        return same and self.tobytes() == other.tobytes()

    __hash__ = None  # type: ignore[assignment]  # as of every Pillow image: it may change

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not self.readonly or protocol < 5:
            return _from_bytes, (self.tobytes(), self.size, self._sha256 if self.readonly else "")
        return _from_bytes, (pickle.PickleBuffer(self._pixels.data), self.size, self._sha256)


def _from_bytes(data: Any, size: tuple[int, int], sha256: str) -> ArrayPicture:
    picture = ArrayPicture(np.frombuffer(data, np.uint8).reshape(size[1], size[0], 3))
    picture._sha256 = sha256
    return picture


def image_sha256(image: Image.Image) -> str:
    """sha256 over mode, size and pixels, whatever file the image came from."""
    return image.sha256 if isinstance(image, ArrayPicture) else _sha256(image, image.tobytes())


def _sha256(image: Image.Image, pixels: Any) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    digest.update(pixels)
    return digest.hexdigest()
