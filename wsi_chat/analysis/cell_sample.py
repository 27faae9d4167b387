"""Counting normal cells in a random sample of tiles: the one question of adequacy that screening does not answer.

The tiles are drawn before anything is known of them but their cellularity, so that the count speaks for the
whole deposit; the tiles chosen for a closer look would not. Every answer goes through the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi_chat import tasks
from wsi_chat.analysis.cascade import picture_of
from wsi_chat.dialects.reading import read_grounding
from wsi_chat.engines.asker import Answered, Asked, Asker
from wsi_chat.errors import SettingError
from wsi_chat.progress import Progress, no_progress
from wsi_chat.schema import Box, CellSample, LabelledBox, Tile

if TYPE_CHECKING:
    from aggregators import Supplied, TileSample
    from tilers import Patch, Slide, TilePlan
    from wsi_chat.dialects import Dialect
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
) -> TileSample | None:
    """Draw tiles of the plan at random and count normal cells in them; None where no tile is wanted."""
    from aggregators import Frame, TileSample, draw
    from tilers import TileStream

    size = tiles_wanted(system, asker.dialect.labels, settings.adequacy_tiles)
    drawn = draw(plan.tiles, size, seed=settings.seed)
    if not drawn:
        return None
    bounds = Box(0, 0, *slide.size)
    with TileStream(slide, plan, workers=settings.workers, tiles=drawn) as patches:
        counted = count_cells(patches, asker, system, total=len(drawn), bounds=bounds, progress=progress)
    return TileSample(counted, Frame(plan.tiles, plan.foreground, plan.stride, bounds))


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

    def questions() -> Iterator[Asked[Tile]]:
        for patch in patches:
            if patch.pixels is None:
                finish(CellSample(tile=patch.tile, status="unreadable", error=patch.error))
                continue
            if not wanted:  # a tile of which nothing can be asked must not vanish
                why = f"the dialect {asker.dialect.name} lists none of the classes that are counted"
                finish(CellSample(tile=patch.tile, status="failed", error=why))
                continue
            states[patch.tile.index] = _Counting()
            image = picture_of(patch)
            for ask in wanted:
                yield Asked(ask, image, patch.tile, name=patch.tile.id)

    for given in asker.ask(questions()):
        tile = given.context
        state = states[tile.index]
        if given.ask.task == "mcq":
            chances = asker.dialect.read_choice(given.answer, given.ask)
            if chances is not None and rule is not None:
                state.p_obscured = min(1.0, max(0.0, chances[rule.positive]))
        else:
            _take(given, asker.dialect, state, bounds)
        state.answers += 1
        if state.answers == len(wanted):
            finish(_record(tile, states.pop(tile.index), wanted))
    return tuple(done[index] for index in sorted(done))


def _take(given: Answered[Tile], dialect: Dialect, state: _Counting, bounds: Box) -> None:
    """Add one grounding answer to its tile's count."""
    target = given.ask.target
    reading = read_grounding(
        dialect, given.answer, given.frame, target, to_level0=given.context.to_level0, bounds=bounds
    )
    state.truncated |= reading.truncated
    if reading.error:
        state.errors.append(f"ground {target}: {reading.error}")
        return
    state.asked.append(target)
    state.boxes += reading.boxes


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
