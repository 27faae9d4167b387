"""A synthetic renderer of liquid-based cervical preparations in Papanicolaou stain, for training and testing.

Deterministic by seed. `render_field` draws one annotated field, `render_fields` a folder of them, `render_slide`
writes a whole slide with its truth. The criteria that the drawing follows are cited in `looks`.
"""

from wsi_chat.datasets.render.export import render_fields
from wsi_chat.datasets.render.field import (
    ABNORMAL,
    LABELS,
    NORMAL,
    ORGANISMS,
    RECIPES,
    Cell,
    Field,
    render_field,
)
from wsi_chat.datasets.render.scene import SLIDE_RECIPES
from wsi_chat.datasets.render.slide import SlideTruth, render_slide

__all__ = [
    "ABNORMAL",
    "LABELS",
    "NORMAL",
    "ORGANISMS",
    "RECIPES",
    "SLIDE_RECIPES",
    "Cell",
    "Field",
    "SlideTruth",
    "render_field",
    "render_fields",
    "render_slide",
]
