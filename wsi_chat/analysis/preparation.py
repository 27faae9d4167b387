"""Everything of a slide that comes before the first question: it is opened, its cells are found, its tiles planned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_chat.analysis.supplied import what_was_supplied
from wsi_chat.progress import Progress, no_progress
from wsi_chat.schema import Box
from wsi_chat.settings import plane_of
from wsi_chat.terminology import load_system

if TYPE_CHECKING:
    from tilers import Foreground, Patch, Slide, TilePlan, TileStream
    from wsi_chat.dialects import Dialect
    from wsi_chat.names import Names
    from wsi_chat.settings import Settings
    from wsi_chat.terminology import System


@dataclass(frozen=True, slots=True)
class Prepared:
    """A slide that is open and planned; with ``patches``, its first tiles are being read. Close it when done.

    It holds one open file, a plan, and at most what one `TileStream` reads ahead (its ``max_bytes``). ``seconds`` is
    how long that took.
    """

    path: Path
    slide: Slide
    system: System
    foreground: Foreground
    plan: TilePlan
    seconds: float
    stream: TileStream | None = None
    patches: Iterator[Patch] | None = None

    @property
    def bounds(self) -> Box:
        """The slide in level-0 pixels."""
        return Box(0, 0, *self.slide.size)

    def close(self) -> None:
        """Stop reading and close the file; calling it twice is harmless."""
        if self.stream is not None:
            self.stream.close()
        self.slide.close()


def prepare_slide(
    path: Path,
    settings: Settings,
    dialect: Dialect,
    *,
    names: Names | None = None,
    read_ahead: bool = False,
    progress: Progress = no_progress,
) -> Prepared:
    """Open a slide and plan its tiles: everything that comes before the first question. Needs no engine.

    Args:
        names: what the slide is called in documents, and what must not show there; None is its own name.
        read_ahead: also begin to read tiles, on threads of their own, so that the first questions need not wait.
        progress: told how much of the slide was read for the mask.

    Raises:
        WsiChatError: the slide or a setting cannot be used.
    """
    from tilers import TileStream, find_foreground, open_slide, plan_tiles

    began = time.perf_counter()
    with ExitStack() as stack:
        slide = stack.enter_context(
            open_slide(
                path,
                mpp=settings.mpp,
                reader=settings.reader,
                z=plane_of(settings.z),
                names=names,
                trial=settings.trial,
            )
        )
        system = load_system(settings.specimen)
        tile_mpp = settings.tile_mpp or dialect.mpp_for(system)
        photographed = slide.is_photograph
        if slide.mpp is None and photographed:
            slide.assume_mpp(tile_mpp)
        slide.require_mpp()
        what_was_supplied(settings, system)  # a preparation that the system does not know is named before any question
        foreground = find_foreground(slide, mask=settings.mask != "off", workers=settings.workers, progress=progress)
        plan = plan_tiles(
            slide,
            foreground,
            tile_px=settings.tile_px or dialect.tile_px,
            mpp=tile_mpp,
            overlap=settings.overlap,
            limit=settings.limit,
            leave_out=leaves_out_glass(settings, slide, system, foreground),
            allow_upsample=photographed,
        )
        stream, patches = None, None
        if read_ahead and plan.tiles:
            stream = stack.enter_context(TileStream(slide, plan, workers=settings.workers))
            # taking the first patch is what sets a stream's threads to work
            patches = iter(stream)
            patches = chain(list(islice(patches, 1)), patches)
        stack.pop_all()
    return Prepared(path, slide, system, foreground, plan, time.perf_counter() - began, stream, patches)


FIELD_PX = 8192
"""Side of the largest picture of one level that is taken for a photograph of a field and not for a scan."""


def leaves_out_glass(settings: Settings, slide: Slide, system: System, foreground: Foreground) -> bool:
    """Whether tiles of empty glass are left out: as the user says, else not for pictures of fields nor blood smears.

    On those every tile counts, and crowded cells leave too little glass to tell it apart. A picture that is nothing but
    glass is left out all the same.
    """
    if settings.mask != "auto" or foreground.is_blank:
        return settings.mask != "off"
    is_field = slide.is_photograph or (len(slide.level_sizes) == 1 and max(slide.size) <= FIELD_PX)
    return not is_field and "blood-smear" not in system.specimens
