"""Counting normal cells in a random sample of tiles: the one question of adequacy that screening does not answer.

The tiles are drawn before anything is known of them but their cellularity, so that the count speaks for the
whole deposit; the tiles chosen for a closer look would not. Every answer goes through the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi_chat import tasks
from wsi_chat.analysis.cascade import Asked, Asker, Progress, no_progress
from wsi_chat.errors import SettingError
from wsi_chat.schema import Answer, Box, CellSample, LabelledBox, Tile

if TYPE_CHECKING:
    from aggregators import Sample, Supplied
    from tilers import Patch, Slide, TilePlan
    from wsi_chat.dialects import Frame
    from wsi_chat.settings import Settings
    from wsi_chat.tasks import Ask
    from wsi_chat.terminology import System

#: Tiles sampled by default: four strata of four, the fewest with which the interval keeps its level
#: (benchmarks/adequacy.py).
DEFAULT_TILES = 16


def tiles_wanted(system: System, known: Sequence[str], asked: int | None) -> int:
    """How many tiles to sample: what the user asked for, else the default where it can tell anything.

    By default none are sampled unless the system's rule counts cells and the model's dialect lists every class that
    it counts; a model without a list of classes is asked only where the user says so.
    """
    labels = system.adequacy.counted_labels
    if asked is not None:
        return asked if labels else 0
    return DEFAULT_TILES if labels and set(labels) <= set(known) else 0


def what_was_supplied(settings: Settings, system: System) -> Supplied:
    """What the settings say of the specimen beyond its type.

    Raises:
        SettingError: a preparation that the system has no minimum for.
    """
    from aggregators import Supplied

    known = [minimum.preparation for minimum in system.adequacy.minima if minimum.preparation != "any"]
    if settings.preparation is not None and settings.preparation not in known:
        way_out = f"Use one of: {', '.join(known)}." if known else f"Leave it out: {system.name} does not ask for it."
        raise SettingError(f"--preparation {settings.preparation!r} is not known.", hint=way_out)
    preparation = settings.preparation or system.preparation_of(settings.specimen)
    return Supplied(preparation=preparation, reduced_minimum=settings.reduced_minimum, age=settings.age)


def sample_cells(
    slide: Slide,
    plan: TilePlan,
    asker: Asker,
    system: System,
    settings: Settings,
    *,
    progress: Progress = no_progress,
) -> Sample | None:
    """Draw tiles of the plan at random and count normal cells in them; None where no tile is wanted."""
    from aggregators import Frame, Sample, draw
    from tilers import TileStream

    size = tiles_wanted(system, asker.dialect.labels, settings.adequacy_tiles)
    drawn = draw(plan.tiles, size, seed=settings.seed)
    if not drawn:
        return None
    bounds = Box(0, 0, *slide.size)
    with TileStream(slide, plan, workers=settings.workers, tiles=drawn) as patches:
        counted = count_cells(patches, asker, system, total=len(drawn), bounds=bounds, progress=progress)
    return Sample(counted, Frame(plan.tiles, plan.foreground, plan.stride, bounds))


@dataclass(slots=True)
class _Counting:
    boxes: list[LabelledBox] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    truncated: bool = False
    p_obscured: float | None = None
    errors: list[str] = field(default_factory=list)
    answers: int = 0


def count_cells(
    patches: Iterable[Patch],
    asker: Asker,
    system: System,
    *,
    total: int,
    bounds: Box,
    progress: Progress = no_progress,
) -> tuple[CellSample, ...]:
    """Ground the classes that the system's adequacy rule counts on the sampled tiles.

    A model whose dialect lists its classes is asked for those among them, and not whether a field is obscured, which it
    was not taught.

    Args:
        bounds: the slide in level-0 pixels; boxes are clipped to it.

    Returns:
        One record a tile, in plan order: ``counted``, ``unreadable``, or ``failed`` where any question about cells
        went without an answer.
    """
    import numpy as np
    from PIL import Image

    progress("adequacy", 0, total)
    known = asker.dialect.labels
    wanted: list[Ask] = [tasks.ground(code) for code in system.adequacy.asked_labels if not known or code in known]
    rule = system.adequacy.obscuring
    if rule is not None and not known:
        wanted.append(tasks.mcq(rule.question, rule.options))
    states: dict[int, _Counting] = {}
    done: dict[int, CellSample] = {}

    def finish(record: CellSample) -> None:
        done[record.tile.index] = record
        progress("adequacy", len(done), total)

    def questions() -> Iterator[Asked]:
        for patch in patches:
            if patch.pixels is None:
                finish(CellSample(tile=patch.tile, status="unreadable", error=patch.error))
                continue
            if not wanted:  # a tile of which nothing can be asked must not vanish
                why = f"the dialect {asker.dialect.name} lists none of the classes that are counted"
                finish(CellSample(tile=patch.tile, status="failed", error=why))
                continue
            states[patch.tile.index] = _Counting()
            image = Image.fromarray(np.ascontiguousarray(patch.pixels))
            for ask in wanted:
                yield patch.tile, image, ask

    for tile, ask, frame, answer in asker.ask(questions()):
        state = states[tile.index]
        if ask.task == "mcq":
            chances = asker.dialect.read_choice(answer, ask)
            if chances is not None and rule is not None:
                state.p_obscured = min(1.0, max(0.0, chances[rule.positive]))
        else:
            _take(answer, ask, frame, tile, asker, state, bounds)
        state.answers += 1
        if state.answers == len(wanted):
            finish(_record(tile, states.pop(tile.index), wanted))
    return tuple(done[index] for index in sorted(done))


def _take(answer: Answer, ask: Ask, frame: Frame, tile: Tile, asker: Asker, state: _Counting, bounds: Box) -> None:
    if answer.status == "failed":
        state.errors.append(f"ground {ask.target}: {answer.error or 'no answer'}")
        return
    reading = asker.dialect.read_boxes(answer, frame, ask.target)
    state.truncated |= answer.status == "truncated" or reading.truncated
    if not reading.understood:
        state.errors.append(f"ground {ask.target}: {answer.text[:80]!r} has neither a box nor words for none")
        return
    state.asked.append(ask.target)
    for found in reading.boxes:
        box = tile.to_level0(found.box).clipped(bounds)
        if box is not None:
            state.boxes.append(LabelledBox(found.label, box, found.score))


def _record(tile: Tile, state: _Counting, wanted: Sequence[Ask]) -> CellSample:
    order = {ask.target: n for n, ask in enumerate(wanted)}
    boxes = sorted(state.boxes, key=lambda item: (order.get(item.label, 0), item.box.y0, item.box.x0))
    return CellSample(
        tile=tile,
        status="failed" if state.errors else "counted",
        boxes=tuple(boxes),
        asked=tuple(sorted(state.asked, key=lambda label: order[label])),
        truncated=state.truncated,
        p_obscured=state.p_obscured,
        error="; ".join(sorted(set(state.errors))),
    )
