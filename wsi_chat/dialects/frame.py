"""Sizes an image for a model and maps boxes there and back: the one place that converts model coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from wsi_chat.errors import AnswerError
from wsi_chat.schema import Box, Record

if TYPE_CHECKING:
    from PIL import Image

LARGEST_SIDE = 16_384
"""Pixels: no model takes pictures of that size in one piece."""

MAX_ASPECT = 200
"""Qwen-VL processors refuse longer strips (`smart_resize`)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """An image as given and as sent, both (width, height) in pixels, and the model's coordinate range.

    ``space`` is the (width, height) of the coordinates that the model reads and writes: the sent size for
    absolute pixels, (1000, 1000) or (1, 1) for normalised ones.
    """

    given: tuple[int, int]
    sent: tuple[int, int]
    space: tuple[float, float]

    @property
    def bounds(self) -> Box:
        """The whole image in pixels as given."""
        return Box(0, 0, *self.given)

    def to_model(self, box: Box) -> Box:
        """Pixels of the image as given -> model coordinates."""
        return _mapped(box, self.given, self.space)

    def to_given(self, box: Box) -> Box:
        """Model coordinates -> pixels of the image as given."""
        return _mapped(box, self.space, self.given)


def _mapped(box: Box, source: tuple[float, float], target: tuple[float, float]) -> Box:
    # multiplied before it is divided, so that the far edge of one range is the far edge of the other
    (w, h), (tw, th) = source, target
    return Box(box.x0 * tw / w, box.y0 * th / h, box.x1 * tw / w, box.y1 * th / h)


class ImagePolicy(Record):
    """How large an image is sent.

    ``side``: the longer side becomes this many pixels (up or down). ``multiple``: both sides are rounded to
    it, so that the model's processor has nothing left to resize. ``min_pixels``/``max_pixels`` bound the area
    where no side is fixed.
    """

    side: int | None = Field(default=None, ge=16, le=LARGEST_SIDE)
    multiple: int = Field(default=1, ge=1, le=LARGEST_SIDE)
    min_pixels: int = Field(default=56 * 56, ge=1, le=LARGEST_SIDE**2)
    max_pixels: int = Field(default=28 * 28 * 1280, ge=1, le=LARGEST_SIDE**2)

    @model_validator(mode="after")
    def _consistent(self) -> ImagePolicy:
        if self.side is not None and self.side % self.multiple:
            raise ValueError(f"side {self.side} is not a multiple of {self.multiple}")
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        return self

    def sent_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to send for an image of this size. Raises AnswerError for an unusable shape."""
        if width < 1 or height < 1 or max(width, height) > MAX_ASPECT * min(width, height):
            raise AnswerError(
                f"an image of {width}x{height} px cannot be shown to the model",
                hint="Crop it to a compact field.",
            )
        if self.side is not None:
            scale = self.side / max(width, height)
        else:
            scale = 1.0
            if width * height > self.max_pixels:
                scale = math.sqrt(self.max_pixels / (width * height))
            elif width * height < self.min_pixels:
                scale = math.sqrt(self.min_pixels / (width * height))
        sent = self._rounded(width * scale), self._rounded(height * scale)
        if self.side is None:
            # rounding to the multiple must not cross the bounds, or the processor would resize once more
            while sent[0] * sent[1] > self.max_pixels and max(sent) > self.multiple:
                sent = self._grown(sent, -self.multiple)
            while sent[0] * sent[1] < self.min_pixels:
                sent = self._grown(sent, self.multiple)
        return sent

    def _rounded(self, length: float) -> int:
        return max(self.multiple, round(length / self.multiple) * self.multiple)

    @staticmethod
    def _grown(size: tuple[int, int], step: int) -> tuple[int, int]:
        longer_is_width = size[0] >= size[1]
        grow_width = longer_is_width if step < 0 else not longer_is_width
        return (size[0] + step, size[1]) if grow_width else (size[0], size[1] + step)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image as RGB at ``size`` (width, height); transparent pixels on white, never black."""
    from PIL import Image  # engines import this module before any picture is there

    from wsi_chat.picture import ArrayPicture

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image if isinstance(image, ArrayPicture) else ArrayPicture.of(image)
