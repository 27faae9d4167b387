"""Screening and the second look with views, contrast and zoom, in the cascade's terms: tile verdicts in and out.

Every picture is asked through the journal like any other question. Where any of a tile's questions fails, the tile
is ``screen_failed``: a score made of half its parts is not the score that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tilers.field import Field
from wsi_chat import tasks
from wsi_chat.analysis.cascade import Asked, Asker, Progress, no_progress
from wsi_chat.analysis.views import (
    Reader,
    ViewedDialect,
    contrast_score,
    degraded,
    expit,
    joined,
    other_views,
    takes_many,
)
from wsi_chat.errors import SlideUnreadable
from wsi_chat.schema import Box, LabelledBox, Tile, TileVerdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from tilers import Patch, Slide
    from wsi_chat.dialects import Dialect
    from wsi_chat.terminology import System

SPOTS = 8
"""Second looks per tile, at most."""
EDGE_PX = 2.0
"""A box that ends this near the border of a second look is cut by it: the first look saw it whole."""


def reader_of(slide: Slide) -> Reader:
    """Reads level-0 rectangles of an open slide as pictures."""
    from PIL.Image import fromarray

    return lambda box, px: fromarray(slide.crop(box, px))


def mechanism_notes(dialect: Dialect, *, views: str, contrast: str, zoom: float) -> list[str]:
    """What the report should say of the mechanisms that were on; empty where none was."""
    notes = []
    if views != "none":
        shown = {"quadrants": "its four quarters", "context": "its surroundings"}[views]
        how = "in one question" if takes_many(dialect) else "asked one by one, the scores joined (mean of logits)"
        notes.append(f"Each tile was screened together with {shown}, {how} (--views {views}).")
    if contrast != "none":
        twin = {"blank": "an empty tile", "blur": "the blurred tile"}[contrast]
        notes.append(f"Tile probabilities are calibrated against the answer to {twin} (--contrast {contrast}).")
    if zoom > 1:
        notes.append(f"What was located was looked at again {zoom:g} times closer; boxes of both looks are merged.")
    return notes


@dataclass(slots=True)
class _Parts:
    """The answers that make up one tile's score: probabilities of the positive option by role."""

    expected: int
    whole: float | None = None
    others: list[float] = field(default_factory=list)
    reference: float | None = None
    errors: list[str] = field(default_factory=list)
    focus: float | None = None
    answers: int = 0


def screen_with_views(
    patches: Iterable[Patch],
    asker: Asker,
    system: System,
    read: Reader,
    *,
    total: int,
    views: str = "none",
    contrast: str = "none",
    progress: Progress = no_progress,
) -> dict[int, TileVerdict]:
    """The cascade's `screen` with other views and contrast: the same verdicts, their ``p_screen`` joined from parts.

    With ``views`` and a model of one image, each view is asked by itself and the scores are joined
    (`views.joined`); a model of several images sees them in one question. With ``contrast`` the same question is
    asked of the degraded tile, and ``p_screen`` is expit of `views.contrast_score`.
    """
    progress("screen", 0, total)
    plain = asker.dialect
    if views != "none":
        asker.dialect = ViewedDialect(plain, views)
    several = takes_many(plain)
    question = tasks.screen(system)
    states: dict[int, _Parts] = {}
    roles: dict[int, tuple[Tile, str, int]] = {}
    verdicts: dict[int, TileVerdict] = {}

    def done(verdict: TileVerdict) -> None:
        verdicts[verdict.tile.index] = verdict
        progress("screen", len(verdicts), total)

    def questions() -> Iterator[Asked]:
        for patch in patches:
            if patch.pixels is None:
                done(TileVerdict(tile=patch.tile, status="unreadable", error=patch.error))
                continue
            try:
                pictures = _pictures(patch, asker, read, views, contrast, several=several)
            except SlideUnreadable as error:
                done(TileVerdict(tile=patch.tile, status="screen_failed", focus=patch.focus, error=error.message))
                continue
            states[patch.tile.index] = _Parts(len(pictures), focus=patch.focus)
            for role, image in pictures:
                handle = replace(patch.tile)  # a copy for each question, to tell its answer by
                roles[id(handle)] = (handle, role, patch.tile.index)
                yield handle, image, question

    try:
        for handle, ask, _, answer in asker.ask(questions()):
            _, role, index = roles.pop(id(handle))
            parts = states[index]
            parts.answers += 1
            chances = plain.read_choice(answer, ask)
            if asker.keeper is not None and role == "whole":
                asker.keeper.answered(handle, usable=chances is not None)
            if chances is None:
                parts.errors.append(answer.error or f"the answer {answer.text[:80]!r} names none of the options")
            else:
                _file(parts, role, min(1.0, max(0.0, chances[system.screen.positive])))
            if parts.answers == parts.expected:
                done(_verdict(handle, states.pop(index), views, system))
    finally:
        asker.dialect = plain
    return verdicts


def _pictures(
    patch: Patch, asker: Asker, read: Reader, views: str, contrast: str, *, several: bool
) -> list[tuple[str, Image]]:
    import numpy as np
    from PIL.Image import fromarray

    image = fromarray(np.ascontiguousarray(patch.pixels))
    whole = Field(patch.tile.id, patch.tile.index, image, patch.tile.box, patch.tile.mpp)
    others = [view.image for view in other_views(whole, views, read)]
    pictures: list[tuple[str, Image]] = [("whole", image)]
    if others and several:
        assert isinstance(asker.dialect, ViewedDialect)
        asker.dialect.show_beside(image, others)
    else:
        pictures += [("other", other) for other in others]
    if contrast != "none":
        pictures.append(("reference", degraded(image, contrast)))
    return pictures


def _file(parts: _Parts, role: str, p: float) -> None:
    if role == "whole":
        parts.whole = p
    elif role == "reference":
        parts.reference = p
    else:
        parts.others.append(p)


def _verdict(tile: Tile, parts: _Parts, views: str, system: System) -> TileVerdict:
    if parts.errors or parts.whole is None:
        why = "; ".join(sorted(set(parts.errors))) or "no answer came back"
        return TileVerdict(tile=tile, status="screen_failed", focus=parts.focus, error=why)
    p = joined(parts.whole, parts.others, views)
    if parts.reference is not None:
        p = expit(contrast_score(p, parts.reference))
    about = system.screen.about_abnormality
    return TileVerdict(tile=tile, status="screened", p_screen=p, p_abnormal=p if about else None, focus=parts.focus)


# ---------------------------------------------------------------------------------------------- the second look


@dataclass(frozen=True, slots=True)
class Spot:
    """Where to look again: a level-0 square, and the classes that were seen in it."""

    box: Box
    labels: tuple[str, ...]


def hot_spots(tile: Tile, boxes: Iterable[LabelledBox], factor: float, *, most: int = SPOTS) -> list[Spot]:
    """Squares of the tile's side over ``factor`` that together hold the centre of every box, the fullest first.

    They lie in whole level-0 pixels inside the tile (and so inside the slide wherever the tile does).
    """
    side = max(1, round(tile.width / factor))
    left = sorted(boxes, key=lambda b: (b.box.y0, b.box.x0, b.label))
    spots: list[Spot] = []
    while left and len(spots) < most:
        squares = [_square_in(tile, found.box.center, side) for found in left]
        held = [[b for b in left if _in(square, b.box.center)] for square in squares]
        best = max(range(len(left)), key=lambda n: (len(held[n]), -n))
        spots.append(Spot(squares[best], tuple(dict.fromkeys(b.label for b in held[best]))))
        left = [b for b in left if not _in(squares[best], b.box.center)]
    return spots


def _square_in(tile: Tile, center: tuple[float, float], side: int) -> Box:
    x = min(max(round(center[0] - side / 2), tile.x), tile.x + tile.width - side)
    y = min(max(round(center[1] - side / 2), tile.y), tile.y + tile.height - side)
    return Box(x, y, x + side, y + side)


def _in(box: Box, point: tuple[float, float]) -> bool:
    return box.x0 <= point[0] <= box.x1 and box.y0 <= point[1] <= box.y1


def second_look(
    verdicts: Mapping[int, TileVerdict],
    asker: Asker,
    read: Reader,
    *,
    factor: float,
    bounds: Box,
    progress: Progress = no_progress,
) -> dict[int, TileVerdict]:
    """Ask again about the places where boxes were seen, ``factor`` times closer; what is found is added.

    The boxes join those of their tile in level-0 pixels; `aggregators.merge_boxes` makes one cell of those that
    are one. A second look that fails leaves the first one's boxes and is told in ``error``.

    Returns:
        tile index -> verdict, for the tiles that were looked at again.
    """
    looked = {index: v for index, v in verdicts.items() if v.status in ("detailed", "detail_failed") and v.boxes}
    found: dict[int, list[LabelledBox]] = {index: list(v.boxes) for index, v in looked.items()}
    errors: dict[int, list[str]] = {index: [] for index in looked}
    cut: dict[int, int] = dict.fromkeys(looked, 0)
    truncated: set[int] = set()
    places: dict[int, tuple[Tile, Field, int]] = {}
    progress("zoom", 0, len(looked))

    def questions() -> Iterator[Asked]:
        for done, (index, verdict) in enumerate(looked.items(), start=1):
            tile = verdict.tile
            for spot in hot_spots(tile, verdict.boxes, factor):
                try:
                    image = read(spot.box, tile.out_px)
                except SlideUnreadable as error:
                    errors[index].append(f"second look: {error.message}")
                    continue
                view = Field(tile.id, index, image, spot.box, tile.mpp / factor)
                for label in spot.labels:
                    handle = replace(tile)
                    places[id(handle)] = (handle, view, index)
                    yield handle, image, tasks.ground(label)
            progress("zoom", done, len(looked))

    for handle, ask, frame, answer in asker.ask(questions()):
        _, view, index = places.pop(id(handle))
        reading = asker.dialect.read_boxes(answer, frame, ask.target)
        if not reading.understood:
            errors[index].append(f"second look for {ask.target}: {answer.error or answer.text[:80]!r}")
            continue
        cut[index] += reading.dropped
        if reading.truncated:
            truncated.add(index)
        for item in reading.boxes:
            if _touches(item.box, view.image.size):
                continue
            box = view.to_level0(item.box).clipped(bounds)
            if box is not None:
                found[index].append(LabelledBox(item.label, box, item.score))
    return {
        index: verdict.model_copy(
            update={
                "boxes": tuple(found[index]),
                "truncated": verdict.truncated or index in truncated,
                "dropped_boxes": verdict.dropped_boxes + cut[index],
                "error": "; ".join([*([verdict.error] if verdict.error else []), *sorted(set(errors[index]))]),
            }
        )
        for index, verdict in looked.items()
    }


def _touches(box: Box, size: tuple[int, int]) -> bool:
    return box.x0 <= EDGE_PX or box.y0 <= EDGE_PX or box.x1 >= size[0] - EDGE_PX or box.y1 >= size[1] - EDGE_PX
