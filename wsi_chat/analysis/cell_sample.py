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
from wsi_chat.progress import Progress, no_progress
from wsi_chat.schema import Box, CellSample, LabelledBox, Tile

if TYPE_CHECKING:
    from aggregators import TileSample
    from tilers import Patch, TilePlan
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


def draw_sample(plan: TilePlan, asker: Asker, system: System, settings: Settings) -> list[Tile]:
    """The tiles in which normal cells are to be counted, drawn at random before anything is asked; often none."""
    from aggregators import draw

    size = tiles_wanted(system, asker.dialect.labels, settings.adequacy_tiles)
    return list(draw(plan.tiles, size, seed=settings.seed))


def tile_sample(counted: Sequence[CellSample], plan: TilePlan, bounds: Box) -> TileSample | None:
    """The counts with what they are a sample of; None where no tile was drawn."""
    from aggregators import Frame, TileSample

    return TileSample(tuple(counted), Frame(plan.tiles, plan.foreground, plan.stride, bounds)) if counted else None


@dataclass(slots=True)
class _Counting:
    boxes: list[LabelledBox] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    truncated: bool = False
    p_obscured: float | None = None
    errors: list[str] = field(default_factory=list)
    answers: int = 0


class CellCounting:
    """The classes that the system's adequacy rule counts, grounded on the sampled tiles: an `Inquiry`.

    A model whose dialect lists its classes is asked for those among them, and not whether a field is obscured, which it
    was not taught.
    """

    def __init__(
        self,
        patches: Iterable[Patch],
        asker: Asker,
        system: System,
        *,
        total: int,
        bounds: Box,
        progress: Progress = no_progress,
    ) -> None:
        """Args:
        bounds: the slide in level-0 pixels; boxes are clipped to it.
        """
        known = asker.dialect.labels
        self._wanted: list[Ask] = [
            tasks.ground(code) for code in system.adequacy.asked_labels if not known or code in known
        ]
        self._rule = system.adequacy.obscuring
        if self._rule is not None and not known:
            self._wanted.append(tasks.mcq(self._rule.question, self._rule.options))
        self._patches = iter(patches)
        self._dialect = asker.dialect
        self._total = total
        self._bounds = bounds
        self._progress = progress
        self._states: dict[int, _Counting] = {}
        self._done: dict[int, CellSample] = {}
        if total:
            progress("adequacy", 0, total)

    @property
    def counted(self) -> tuple[CellSample, ...]:
        """One record a tile, in plan order: ``counted``, ``unreadable``, or ``failed`` where any question about cells
        went without an answer."""
        return tuple(self._done[index] for index in sorted(self._done))

    def questions(self) -> Iterator[Asked[Tile]]:
        for patch in self._patches:
            if patch.pixels is None:
                self._finish(CellSample(tile=patch.tile, status="unreadable", error=patch.error))
                continue
            if not self._wanted:  # a tile of which nothing can be asked must not vanish
                why = f"the dialect {self._dialect.name} lists none of the classes that are counted"
                self._finish(CellSample(tile=patch.tile, status="failed", error=why))
                continue
            self._states[patch.tile.index] = _Counting()
            image = picture_of(patch)
            for ask in self._wanted:
                yield Asked(ask, image, patch.tile, name=patch.tile.id)

    def take(self, given: Answered[Tile]) -> None:
        tile = given.context
        state = self._states[tile.index]
        if given.ask.task == "mcq":
            chances = self._dialect.read_choice(given.answer, given.ask)
            if chances is not None and self._rule is not None:
                state.p_obscured = min(1.0, max(0.0, chances[self._rule.positive]))
        else:
            _take(given, self._dialect, state, self._bounds)
        state.answers += 1
        if state.answers == len(self._wanted):
            self._finish(_record(tile, self._states.pop(tile.index), self._wanted))

    def _finish(self, record: CellSample) -> None:
        self._done[record.tile.index] = record
        self._progress("adequacy", len(self._done), self._total)


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
