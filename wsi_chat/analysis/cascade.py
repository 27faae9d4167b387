"""The cascade: a cheap question of every tile, dear ones only where they pay, and a funnel of what became of each.

Every answer passes through the journal before it is counted, so a run killed at any instant resumes without asking
a tile twice. A tile that cannot be read, or whose answer failed, is recorded as such and never stands for 'normal'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsi_chat import tasks
from wsi_chat.analysis.inquiry import ask_all
from wsi_chat.dialects.reading import read_grounding, why_no_choice
from wsi_chat.engines.asker import Answered, Asked, Asker
from wsi_chat.picture import ArrayPicture
from wsi_chat.progress import Progress, no_progress
from wsi_chat.schema import Box, LabelledBox, Tile, TileVerdict

if TYPE_CHECKING:
    from PIL import Image

    from tilers import Patch
    from wsi_chat.dialects import Dialect
    from wsi_chat.terminology import System


NO_PROBABILITIES = "the answer came without probabilities, those of other tiles with them"


def picture_of(patch: Patch) -> Image.Image:
    """A patch that could be read, as a picture to show."""
    assert patch.pixels is not None
    return ArrayPicture(patch.pixels)


class Screening:
    """The system's screen question, asked of every patch: an `Inquiry`.

    Attributes:
        verdicts: tile index -> verdict with status ``screened``, ``screen_failed`` or ``unreadable``, so far.
    """

    def __init__(
        self,
        patches: Iterable[Patch],
        asker: Asker,
        system: System,
        *,
        total: int,
        sure: Callable[[TileVerdict, Image.Image], None] | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """Args:
        sure: called with each tile's verdict and picture as soon as its answer came with probabilities, so that
            no later answer takes it back.
        """
        self.verdicts: dict[int, TileVerdict] = {}
        self._patches = iter(patches)
        self._asker = asker
        self._system = system
        self._question = tasks.screen(system)
        self._total = total
        self._sure = sure
        self._progress = progress
        self._exhausted = False
        self._under_way = 0
        progress("screen", 0, total)  # the clock starts before the first batch, not with its answers

    @property
    def complete(self) -> bool:
        """Whether every patch was read and every question answered."""
        return self._exhausted and not self._under_way

    def questions(self) -> Iterator[Asked[Any]]:
        for patch in self._patches:
            if patch.pixels is None:
                self._record(TileVerdict(tile=patch.tile, status="unreadable", error=patch.error))
                continue
            asked = self._about(patch)
            self._under_way += len(asked)
            yield from asked
        self._exhausted = True

    def take(self, given: Answered[Any]) -> None:
        self._under_way -= 1
        self._judge(given, self._asker.read_screen(given, self._system.screen.positive))

    def _about(self, patch: Patch) -> list[Asked[Any]]:
        """What is asked about a tile that was read."""
        read = ReadTile(patch.tile, patch.focus, patch.z)
        return [Asked(self._question, picture_of(patch), read, name=patch.tile.id, screened=patch.tile)]

    def _judge(self, given: Answered[Any], p: float | None) -> None:
        """An answer came, with the probability of the positive option; None where it names no option."""
        read: ReadTile = given.context
        if p is None:
            why = why_no_choice(given.answer)
            self._record(TileVerdict(tile=read.tile, status="screen_failed", focus=read.focus, z=read.z, error=why))
            return
        verdict = screened(read, p, self._system)
        self._record(verdict)
        if self._sure is not None and given.answer.probabilities is not None:
            self._sure(verdict, given.asked.image)

    def _record(self, verdict: TileVerdict) -> None:
        self.verdicts[verdict.tile.index] = verdict
        self._progress("screen", len(self.verdicts), self._total)


def screen(
    patches: Iterable[Patch], asker: Asker, system: System, *, total: int, progress: Progress = no_progress
) -> dict[int, TileVerdict]:
    """Ask the system's screen question of every patch, and nothing beside it: `Screening` alone."""
    screening = Screening(patches, asker, system, total=total, progress=progress)
    ask_all(asker, screening)
    return on_one_scale(screening.verdicts, asker)


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


class Detailing:
    """Every label that the system asks for grounded, and a description, on the tiles that are chosen: an `Inquiry`.

    Attributes:
        finished: tile index -> what screening found, with the details added and status ``detailed``, or
            ``detail_failed`` where any question went unanswered (what was answered stays).
    """

    def __init__(
        self,
        asker: Asker,
        system: System,
        verdicts: Mapping[int, TileVerdict],
        *,
        bounds: Box,
        patches: Callable[[], Iterator[Patch]],
        age: int | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """Args:
        verdicts: what screening found.
        bounds: the slide in level-0 pixels; boxes are clipped to it.
        patches: reads the chosen tiles that were not given to `look_at`; called whenever those given are all asked
            about, it gives nothing while it is not known which they are.
        age: of the patient in years, where it was supplied: some labels are asked for from an age on.
        """
        self.finished: dict[int, TileVerdict] = {}
        labels = system.labels_to_ask(asker.dialect.labels, age=age)
        self._wanted = [tasks.ground(label.code) for label in labels] + [tasks.describe()]
        self._dialect = asker.dialect
        self._verdicts = verdicts
        self._bounds = bounds
        self._patches = patches
        self._progress = progress
        self._ready: deque[tuple[Tile, Image.Image]] = deque()
        self._states: dict[int, _Detail] = {}
        self._expected = 0

    def expect(self, more: int) -> None:
        """So many tiles are chosen further."""
        self._expected += more
        self._progress("detail", len(self.finished), self._expected)

    def look_at(self, tile: Tile, image: Image.Image) -> None:
        """A tile is chosen whose picture is at hand."""
        self.expect(1)
        self._ready.append((tile, image))

    def questions(self) -> Iterator[Asked[Tile]]:
        while self._ready:
            yield from self._about(*self._ready.popleft())
        for patch in self._patches():
            if patch.pixels is None:
                state = _Detail(errors=[patch.error or "unreadable on the second reading"])
                self._finish(patch.tile, state)
                continue
            yield from self._about(patch.tile, picture_of(patch))

    def _about(self, tile: Tile, image: Image.Image) -> Iterator[Asked[Tile]]:
        self._states[tile.index] = _Detail()
        for ask in self._wanted:
            yield Asked(ask, image, tile, name=tile.id)

    def take(self, given: Answered[Tile]) -> None:
        tile = given.context
        state = self._states[tile.index]
        _take(given, self._dialect, state, self._bounds)
        state.answers += 1
        if state.answers == len(self._wanted):
            order = {ask.target: n for n, ask in enumerate(self._wanted)}
            state.asked.sort(key=lambda label: order[label])
            state.boxes.sort(key=lambda found: (order.get(found.label, 0), found.box.y0, found.box.x0))
            self._finish(tile, self._states.pop(tile.index))

    def _finish(self, tile: Tile, state: _Detail) -> None:
        self.finished[tile.index] = self._verdicts[tile.index].model_copy(
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
        self._progress("detail", len(self.finished), self._expected)


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
    """Look closely at these patches, and ask nothing beside it: `Detailing` alone."""
    source = iter(patches)
    detailing = Detailing(
        asker, system, verdicts, bounds=bounds, patches=lambda: source, age=age, progress=progress
    )  # fmt: skip
    detailing.expect(total)
    ask_all(asker, detailing)
    return detailing.finished


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
