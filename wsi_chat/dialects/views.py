"""A field looked at in more than one way: its quarters or its surroundings beside it, an empty or a blurred twin.

These are EndoChat's two mechanisms (arXiv 2501.11347) as they carry to inference without training. *Multi-scale
visual tokens*: several pictures in one query where the model takes several, else one query each and the scores
joined. *Visual contrast*: a calibration of the score, s = logit p(positive | field) - logit p(positive | degraded
field), turned back into a probability; whatever the model answers without looking is taken off. All are off by
default: whether they pay is measured by benchmarks/mechanisms.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageFilter

from tilers.field import Field
from wsi_chat.dialects.dialect import Beside
from wsi_chat.schema import Box

CLIP = 1e-6
"""Probabilities are clipped to CLIP .. 1 - CLIP before a logit is taken."""
BLANK_RGB = (240, 240, 240)
"""The empty field: bright-field background. One colour for all, so that it is asked once per question."""
BLUR = 1 / 16
"""Radius of the blur as a share of the field's side: no nucleus keeps its outline."""
CONTEXT = 2.0
"""Side of the surroundings shown with a field, as a multiple of the field's."""

NOTE = {
    "quadrants": "Image 1 is the field; images 2 to 5 are its quarters enlarged: upper left, upper right, lower left,"
    " lower right. Answer for image 1, with coordinates in image 1.",
    "context": "Image 1 is the field; image 2 shows it with its surroundings. Answer for image 1, with coordinates"
    " in image 1.",
}

Reader = Callable[[Box, int], Image.Image]
"""Reads a level-0 rectangle as a picture whose longer side has so many pixels."""


def other_views(field: Field, kind: str, read: Reader) -> tuple[Field, ...]:
    """The field's four quarters at twice its magnification, or the field with its surroundings.

    Quarters meet in whole level-0 pixels. ``none`` gives none.
    """
    box, px = field.box, max(field.image.size)
    if kind == "quadrants":
        x, y = round(box.center[0]), round(box.center[1])
        parts: tuple[Box, ...] = (
            Box(box.x0, box.y0, x, y),
            Box(x, box.y0, box.x1, y),
            Box(box.x0, y, x, box.y1),
            Box(x, y, box.x1, box.y1),
        )
    elif kind == "context":
        dx, dy = (round(side * (CONTEXT - 1) / 2) for side in (box.width, box.height))
        parts = (Box(box.x0 - dx, box.y0 - dy, box.x1 + dx, box.y1 + dy),)
    else:
        return ()
    found = []
    for number, part in enumerate(parts, start=1):
        scale = max(part.width, part.height) / max(box.width, box.height)
        mpp = None if field.mpp is None else field.mpp * scale
        found.append(Field(f"{field.id}/{kind}{number}", field.index, read(part, px), part, mpp))
    return tuple(found)


def beside(views: Sequence[Field], kind: str) -> Beside | None:
    """The other views as images to be shown in the field's own question; None where there are none."""
    return Beside(tuple(view.image for view in views), NOTE[kind]) if views else None


def degraded(image: Image.Image, kind: str) -> Image.Image:
    """The picture without what is asked about: ``blank`` (background only) or ``blur``."""
    if kind == "blank":
        return Image.new("RGB", image.size, BLANK_RGB)
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(max(image.size) * BLUR))


# ---------------------------------------------------------------------------------------------- scores


def logit(p: float) -> float:
    """ln(p / (1 - p)), of p clipped to CLIP .. 1 - CLIP."""
    p = min(1.0 - CLIP, max(CLIP, p))
    return math.log(p) - math.log1p(-p)


def expit(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def contrast_score(p: float, p_degraded: float) -> float:
    """s = logit p - logit p_degraded: what looking at the field adds to the answer. 0 where it adds nothing."""
    return logit(p) - logit(p_degraded)


def joined(p: float, others: Sequence[float], kind: str) -> float:
    """One probability of 'anything there' from a field and its other views, asked one by one.

    The mean of the field's logit and that of the other scale; the quarters' is their highest, since what is
    anywhere in the field is in one of them.
    """
    if not others:
        return p
    second = max(logit(q) for q in others) if kind == "quadrants" else sum(map(logit, others)) / len(others)
    return expit((logit(p) + second) / 2)


def mean_choice(chances: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Option -> probability, averaged over answers to the same options, in the order of the first."""
    return {option: math.fsum(each[option] for each in chances) / len(chances) for option in chances[0]}


def contrasted_choice(chances: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Option probabilities divided by those for the degraded field and scaled to sum to 1.

    With two options this is expit of `contrast_score`.
    """
    logs = {o: math.log(max(CLIP, p)) - math.log(max(CLIP, reference[o])) for o, p in chances.items()}
    top = max(logs.values())
    weights = {option: math.exp(value - top) for option, value in logs.items()}
    total = math.fsum(weights.values())
    return {option: weight / total for option, weight in weights.items()}
