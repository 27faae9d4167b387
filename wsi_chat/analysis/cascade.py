"""The cascade: a cheap question of every tile, dear ones only where they pay, and a funnel of what became of each.

Every answer passes through the journal before it is counted, so a run killed at any instant resumes without asking
a tile twice. A tile that cannot be read, or whose answer failed, is recorded as such and never stands for 'normal'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wsi_chat import tasks
from wsi_chat.dialects.reading import read_grounding, why_no_choice
from wsi_chat.engines.asker import Answered, Asked, Asker
from wsi_chat.progress import Progress, no_progress
from wsi_chat.schema import Box, LabelledBox, Tile, TileVerdict

if TYPE_CHECKING:
    from tilers import Patch
    from wsi_chat.dialects import Dialect
    from wsi_chat.terminology import System


NO_PROBABILITIES = "the answer came without probabilities, those of other tiles with them"


def picture_of(patch: Patch) -> Image.Image:
    """A patch that could be read, as a picture to show."""
    assert patch.pixels is not None
    return Image.fromarray(np.ascontiguousarray(patch.pixels))


def screen(
    patches: Iterable[Patch], asker: Asker, system: System, *, total: int, progress: Progress = no_progress
) -> dict[int, TileVerdict]:
    """Ask the system's screen question of every patch.

    Returns:
        tile index -> verdict with status ``screened``, ``screen_failed`` or ``unreadable``.
    """
    progress("screen", 0, total)  # the clock starts before the first batch, not with its answers
    question = tasks.screen(system)
    verdicts: dict[int, TileVerdict] = {}

    def record(verdict: TileVerdict) -> None:
        verdicts[verdict.tile.index] = verdict
        progress("screen", len(verdicts), total)

    def questions() -> Iterator[Asked[ReadTile]]:
        for patch in patches:
            if patch.pixels is None:
                record(TileVerdict(tile=patch.tile, status="unreadable", error=patch.error))
                continue
            read = ReadTile(patch.tile, patch.focus, patch.z)
            yield Asked(question, picture_of(patch), read, name=patch.tile.id, screened=patch.tile)

    for given in asker.ask(questions()):
        read = given.context
        p = asker.read_screen(given, system.screen.positive)
        if p is None:
            why = why_no_choice(given.answer)
            record(TileVerdict(tile=read.tile, status="screen_failed", focus=read.focus, z=read.z, error=why))
        else:
            record(screened(read, p, system))
    return on_one_scale(verdicts, asker)


def on_one_scale(verdicts: dict[int, TileVerdict], asker: Asker) -> dict[int, TileVerdict]:
    """The verdicts without answers that came as a yes or no among probabilities: those tiles have no answer."""
    retracted = asker.retract_mixed()
    for index, verdict in verdicts.items():
        if verdict.tile.id in retracted and verdict.status == "screened":
            verdicts[index] = TileVerdict(
                tile=verdict.tile, status="screen_failed", focus=verdict.focus, z=verdict.z, error=NO_PROBABILITIES
            )
    return verdicts


POSITIVE = 0.5
"""``p_screen`` from which a tile is taken to hold what the screening question asks about."""


@dataclass(frozen=True, slots=True)
class ReadTile:
    """A tile that was read, how sharp it is, and the focal plane shown where the slide is a stack."""

    tile: Tile
    focus: float | None
    z: int | None = None


def screened(read: ReadTile, p: float, system: System) -> TileVerdict:
    """The verdict on a tile from the probability of the screening question's positive option."""
    about = system.screen.about_abnormality
    return TileVerdict(
        tile=read.tile, status="screened", p_screen=p, p_abnormal=p if about else None, focus=read.focus, z=read.z
    )


def choose(
    verdicts: Mapping[int, TileVerdict], *, top_k: int, exhaustive: bool = False, positive: bool = False
) -> list[Tile]:
    """The tiles worth the dear questions, in plan order.

    Args:
        top_k: so many of the highest ``p_screen``, ties by plan order.
        exhaustive: every tile that was screened.
        positive: besides, every tile whose ``p_screen`` is at least `POSITIVE`: a differential that counts the white
            cells of the highest-scoring tiles alone is a count of those tiles, not of the specimen.
    """
    screened = [v for v in verdicts.values() if v.p_screen is not None]
    if not exhaustive:
        ranked = sorted(screened, key=lambda v: (-(v.p_screen or 0.0), v.tile.index))
        screened = ranked[:top_k] + [v for v in ranked[top_k:] if positive and (v.p_screen or 0.0) >= POSITIVE]
    return sorted((v.tile for v in screened), key=lambda tile: tile.index)


@dataclass(slots=True)
class _Detail:
    """What the dear questions of one tile have brought so far."""

    boxes: list[LabelledBox] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    description: str = ""
    truncated: bool = False
    dropped: int = 0
    errors: list[str] = field(default_factory=list)
    answers: int = 0


def detail(
    patches: Iterable[Patch],
    asker: Asker,
    system: System,
    verdicts: Mapping[int, TileVerdict],
    *,
    total: int,
    bounds: Box,
    age: int | None = None,
    progress: Progress = no_progress,
) -> dict[int, TileVerdict]:
    """Ground every label that the system asks for, and describe, on the given patches.

    Args:
        verdicts: what screening found; the result repeats it for these tiles, with the details added.
        bounds: the slide in level-0 pixels; boxes are clipped to it.
        age: of the patient in years, where it was supplied: some labels are asked for from an age on.

    Returns:
        tile index -> verdict with status ``detailed``, or ``detail_failed`` where any question went unanswered
        (what was answered stays).
    """
    progress("detail", 0, total)
    labels = system.labels_to_ask(asker.dialect.labels, age=age)
    wanted = [tasks.ground(label.code) for label in labels] + [tasks.describe()]
    states: dict[int, _Detail] = {}
    finished: dict[int, TileVerdict] = {}

    def finish(tile: Tile, state: _Detail) -> None:
        finished[tile.index] = verdicts[tile.index].model_copy(
            update={
                "status": "detail_failed" if state.errors else "detailed",
                "boxes": tuple(state.boxes),
                "asked": tuple(state.asked),
                "description": state.description,
                "truncated": state.truncated,
                "dropped_boxes": state.dropped,
                "error": "; ".join(sorted(set(state.errors))),
            }
        )
        progress("detail", len(finished), total)

    def questions() -> Iterator[Asked[Tile]]:
        for patch in patches:
            state = states[patch.tile.index] = _Detail()
            if patch.pixels is None:
                state.errors.append(patch.error or "unreadable on the second reading")
                finish(patch.tile, states.pop(patch.tile.index))
                continue
            image = picture_of(patch)
            for ask in wanted:
                yield Asked(ask, image, patch.tile, name=patch.tile.id)

    for given in asker.ask(questions()):
        tile = given.context
        state = states[tile.index]
        _take(given, asker.dialect, state, bounds)
        state.answers += 1
        if state.answers == len(wanted):
            order = {ask.target: n for n, ask in enumerate(wanted)}
            state.asked.sort(key=lambda label: order[label])
            state.boxes.sort(key=lambda found: (order.get(found.label, 0), found.box.y0, found.box.x0))
            finish(tile, states.pop(tile.index))
    return finished


def _take(given: Answered[Tile], dialect: Dialect, state: _Detail, bounds: Box) -> None:
    """Add one answer to its tile's state."""
    ask, answer = given.ask, given.answer
    if ask.task == "describe":
        if answer.status == "failed":
            state.errors.append(f"describe: {answer.error or 'no answer'}")
        else:
            state.truncated |= answer.status == "truncated"
            state.description = dialect.read_text(answer)
        return
    reading = read_grounding(dialect, answer, given.frame, ask.target, to_level0=given.context.to_level0, bounds=bounds)
    state.truncated |= reading.truncated
    if reading.error:
        state.errors.append(f"ground {ask.target}: {reading.error}")
        return
    state.asked.append(ask.target)
    state.dropped += reading.dropped
    state.boxes += reading.boxes
