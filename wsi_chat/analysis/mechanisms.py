"""Screening and the second look with views, contrast and zoom, in the cascade's terms: tile verdicts in and out.

Every picture is asked through the journal like any other question. Where any of a tile's questions fails, the tile
is ``screen_failed``: a score made of half its parts is not the score that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from tilers.field import Field
from tilers.spots import hot_spots, touches_edge
from wsi_chat import tasks
from wsi_chat.analysis.cascade import ReadTile, Screening, picture_of, screened
from wsi_chat.dialects.reading import read_grounding, why_no_choice
from wsi_chat.dialects.views import Reader, beside, contrast_score, degraded, expit, joined, other_views
from wsi_chat.engines.asker import Answered, Asked, Asker
from wsi_chat.errors import SlideUnreadable
from wsi_chat.progress import Progress, no_progress
from wsi_chat.schema import Box, LabelledBox, Remark, TileVerdict

if TYPE_CHECKING:
    from tilers import Patch, Slide
    from wsi_chat.dialects import Dialect
    from wsi_chat.tasks import Ask
    from wsi_chat.terminology import System

VIEWED = {
    ("quadrants", True): "mechanism.quarters_together",
    ("quadrants", False): "mechanism.quarters_one_by_one",
    ("context", True): "mechanism.context_together",
    ("context", False): "mechanism.context_one_by_one",
}


def reader_of(slide: Slide) -> Reader:
    """Reads level-0 rectangles of an open slide as pictures."""
    return lambda box, px: Image.fromarray(slide.crop(box, px, alone=True))


def mechanism_notes(dialect: Dialect, *, views: str, contrast: str, zoom: float) -> list[Remark]:
    """What the report should say of the mechanisms that were on; empty where none was."""
    notes = []
    if views != "none":
        notes.append(Remark(VIEWED[views, dialect.several_images]))
    if contrast != "none":
        notes.append(Remark("mechanism.contrast_blank" if contrast == "blank" else "mechanism.contrast_blur"))
    if zoom > 1:
        notes.append(Remark("mechanism.zoom", factor=zoom))
    return notes


Role = Literal["whole", "other", "reference"]


@dataclass(slots=True)
class _Parts:
    """The answers that make up one tile's score: probabilities of the positive option by role."""

    tile: ReadTile
    expected: int = 0
    whole: float | None = None
    others: list[float] = field(default_factory=list)
    reference: float | None = None
    errors: list[str] = field(default_factory=list)
    answers: int = 0

    def take(self, role: Role, p: float) -> None:
        if role == "whole":
            self.whole = p
        elif role == "reference":
            self.reference = p
        else:
            self.others.append(p)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one question is to its tile's score."""

    of: _Parts
    role: Role


class ViewedScreening(Screening):
    """Screening with other views and contrast: the same verdicts, their ``p_screen`` joined from parts.

    With ``views`` and a model of one image, each view is asked by itself and the scores are joined
    (`views.joined`); a model of several images sees them in one question. With ``contrast`` the same question is
    asked of the degraded tile, and ``p_screen`` is expit of `views.contrast_score`.
    """

    def __init__(
        self,
        patches: Iterable[Patch],
        asker: Asker,
        system: System,
        read: Reader,
        *,
        total: int,
        views: str = "none",
        contrast: str = "none",
        progress: Progress = no_progress,
    ) -> None:
        super().__init__(patches, asker, system, total=total, progress=progress)
        self._read = read
        self._views = views
        self._contrast = contrast

    def _about(self, patch: Patch) -> list[Asked[Any]]:
        several = self._asker.dialect.several_images
        try:
            return _questions_about(patch, self._question, self._read, self._views, self._contrast, several=several)
        except SlideUnreadable as error:
            self._record(
                TileVerdict(tile=patch.tile, status="screen_failed", focus=patch.focus, z=patch.z, error=error.message)
            )
            return []

    def _judge(self, given: Answered[_Part], p: float | None) -> None:
        parts = given.context.of
        parts.answers += 1
        if p is None:
            parts.errors.append(why_no_choice(given.answer))
        else:
            parts.take(given.context.role, p)
        if parts.answers == parts.expected:
            self._record(_verdict(parts, self._views, self._system))


def _questions_about(
    patch: Patch, question: Ask, read: Reader, views: str, contrast: str, *, several: bool
) -> list[Asked[_Part]]:
    """The questions that make up one tile's score, the tile itself first.

    Raises:
        SlideUnreadable: one of its views cannot be read.
    """
    tile, image = patch.tile, picture_of(patch)
    others = other_views(Field(tile.id, tile.index, image, tile.box, tile.mpp), views, read)
    parts = _Parts(ReadTile(tile, patch.focus, patch.z))
    shown = beside(others, views) if several else None
    asked = [Asked(question, image, _Part(parts, "whole"), name=tile.id, beside=shown, screened=tile)]
    if not several:
        asked += [Asked(question, view.image, _Part(parts, "other"), name=tile.id) for view in others]
    if contrast != "none":
        asked.append(Asked(question, degraded(image, contrast), _Part(parts, "reference"), name=tile.id))
    parts.expected = len(asked)
    return asked


def _verdict(parts: _Parts, views: str, system: System) -> TileVerdict:
    read = parts.tile
    if parts.errors or parts.whole is None:
        why = "; ".join(sorted(set(parts.errors))) or "no answer came back"
        return TileVerdict(tile=read.tile, status="screen_failed", focus=read.focus, z=read.z, error=why)
    p = joined(parts.whole, parts.others, views)
    if parts.reference is not None:
        p = expit(contrast_score(p, parts.reference))
    return screened(read, p, system)


# ---------------------------------------------------------------------------------------------- the second look


@dataclass(slots=True)
class _Look:
    """What both looks at one tile have brought so far."""

    verdict: TileVerdict
    boxes: list[LabelledBox]
    errors: list[str] = field(default_factory=list)
    dropped: int = 0
    truncated: bool = False

    def joined(self) -> TileVerdict:
        before = self.verdict
        return before.model_copy(
            update={
                "boxes": tuple(self.boxes),
                "truncated": before.truncated or self.truncated,
                "dropped_boxes": before.dropped_boxes + self.dropped,
                "error": "; ".join([*([before.error] if before.error else []), *sorted(set(self.errors))]),
            }
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a question of the second look was asked."""

    look: _Look
    view: Field


def second_look(
    verdicts: Mapping[int, TileVerdict],
    asker: Asker,
    read: Reader,
    *,
    factor: float,
    bounds: Box,
    progress: Progress = no_progress,
) -> dict[int, TileVerdict]:
    """Ask again about the places where boxes were found, ``factor`` times closer; further boxes are added.

    The boxes join those of their tile in level-0 pixels; `aggregators.merge_boxes` makes one cell of those that
    are one. Where a second look fails, the first one's boxes stay and ``error`` says so.

    Returns:
        tile index -> verdict, for the tiles that were looked at again.
    """
    looks = {
        index: _Look(verdict, list(verdict.boxes))
        for index, verdict in verdicts.items()
        if verdict.status in ("detailed", "detail_failed") and verdict.boxes
    }
    progress("zoom", 0, len(looks))

    def questions() -> Iterator[Asked[_Place]]:
        for done, look in enumerate(looks.values(), start=1):
            tile = look.verdict.tile
            for spot in hot_spots(tile, look.verdict.boxes, factor):
                try:
                    image = read(spot.box, tile.out_px)
                except SlideUnreadable as error:
                    look.errors.append(f"second look: {error.message}")
                    continue
                place = _Place(look, Field(tile.id, tile.index, image, spot.box, tile.mpp / factor))
                for label in spot.labels:
                    yield Asked(tasks.ground(label), image, place, name=tile.id)
            progress("zoom", done, len(looks))

    for given in asker.ask(questions()):
        look, view = given.context.look, given.context.view
        reading = read_grounding(
            asker.dialect,
            given.answer,
            given.frame,
            given.ask.target,
            to_level0=view.to_level0,
            bounds=bounds,
            usable=_whole_in(view),
        )
        if reading.error:
            look.errors.append(f"second look for {given.ask.target}: {reading.error}")
            continue
        look.dropped += reading.dropped
        look.truncated |= reading.truncated
        look.boxes += reading.boxes
    return {index: look.joined() for index, look in looks.items()}


def _whole_in(view: Field) -> Callable[[Box], bool]:
    """Whether a box of a view's picture lies in it whole, and is not cut by its border."""
    return lambda box: not touches_edge(box, view.image.size)
