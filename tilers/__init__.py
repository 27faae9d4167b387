"""Slide in, patches out: reading, mpp, foreground, planning and streaming. Knows nothing of any model.

    from tilers import open_slide, find_foreground, plan_tiles, TileStream

    with open_slide("slide.svs") as slide:
        plan = plan_tiles(slide, find_foreground(slide), tile_px=512, mpp=0.5)
        with TileStream(slide, plan) as stream:
            for patch in stream: ...

Names are imported on first use, so that ``import tilers`` stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_chat.lazy import on_first_use

if TYPE_CHECKING:
    from tilers.focus import focus_score
    from tilers.foreground import Foreground, find_foreground
    from tilers.opening import open_slide, slide_of
    from tilers.picture import open_picture, picture_size
    from tilers.plan import TilePlan, plan_tiles
    from tilers.readers import Backend, Resolution, WindowBackend, reader_names, register_reader
    from tilers.slide import Slide
    from tilers.stream import Patch, TileStream

__all__ = [
    "Backend",
    "Foreground",
    "Patch",
    "Resolution",
    "Slide",
    "TilePlan",
    "TileStream",
    "WindowBackend",
    "find_foreground",
    "focus_score",
    "open_picture",
    "open_slide",
    "picture_size",
    "plan_tiles",
    "reader_names",
    "register_reader",
    "slide_of",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    __all__,
    {
        ".focus": ("focus_score",),
        ".foreground": ("Foreground", "find_foreground"),
        ".opening": ("open_slide", "slide_of"),
        ".picture": ("open_picture", "picture_size"),
        ".plan": ("TilePlan", "plan_tiles"),
        ".readers": ("Backend", "Resolution", "WindowBackend", "reader_names", "register_reader"),
        ".slide": ("Slide",),
        ".stream": ("Patch", "TileStream"),
    },
)
