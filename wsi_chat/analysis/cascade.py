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
from wsi_chat.schema import Answer, Box, LabelledBox, Query, Tile, TileVerdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from tilers import Patch
    from wsi_chat.analysis.feature_keeper import FeatureKeeper
    from wsi_chat.dialects import Dialect, Frame
    from wsi_chat.engines import Engine
    from wsi_chat.journal import Journal
    from wsi_chat.tasks import Ask
    from wsi_chat.terminology import System

Asked = tuple[Tile, "Image", "Ask"]
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """The default: nobody is told."""


@dataclass(slots=True)
class Asker:
    """Puts questions to an engine through the journal; counts what was new and what was known.

    Questions with the same key (the same pixels, the same words) are asked once, also within one run.
    """

    engine: Engine
    dialect: Dialect
    journal: Journal
    decoding: Mapping[str, Any]
    answers_new: int = 0
    answers_reused: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    choices_in_words: int = 0
    """Choices that came without probabilities, from a server that gives none."""
    keeper: FeatureKeeper | None = None
    """Keeps image features of the tiles that are screened."""
    _waiting: dict[str, list[tuple[Tile, Ask, Frame]]] = field(default_factory=dict)

    @property
    def generated_tokens(self) -> int:
        """Tokens that the model generated for the questions asked so far, each once, also those answered earlier."""
        return sum(self.tokens.values())

    def ask(self, questions: Iterable[Asked]) -> Iterator[tuple[Tile, Ask, Frame, Answer]]:
        """Answers in the order they become known, each with its tile, question and frame.

        Pulls ``questions`` only as fast as the engine takes them. An EngineDied passes through; what was
        answered before it is in the journal.
        """
        known: deque[tuple[Tile, Ask, Frame, Answer]] = deque()
        self._waiting.clear()
        for answer in self.engine.answer(self._unknown(questions, known)):
            yield from _drain(known)
            self.journal.put(answer)
            self.answers_new += 1
            self.tokens[answer.key] = answer.new_tokens
            for tile, ask, frame in self._waiting.pop(answer.key, []):
                yield tile, ask, frame, answer
        yield from _drain(known)
        for (
            key,
            askers,
        ) in self._waiting.items():  # an engine that swallowed a question must not make it vanish
            for tile, ask, frame in askers:
                lost = Answer(key, ask.task, "", status="failed", finish_reason="error", error="no answer came back")
                yield tile, ask, frame, lost

    def _unknown(self, questions: Iterable[Asked], known: deque[tuple[Tile, Ask, Frame, Answer]]) -> Iterator[Query]:
        for tile, image, ask in questions:
            query, frame = self.dialect.build(
                ask, image, tile_id=tile.id, model_id=self.engine.model_id, decoding=self.decoding
            )
            earlier = self.journal.get(query.key)
            if self.keeper is not None and ask.task == "screen":
                self.keeper.shown(tile, query, known=earlier is not None)
            if earlier is not None:
                self.answers_reused += 1
                self.tokens[earlier.key] = earlier.new_tokens
                known.append((tile, ask, frame, earlier))
            elif query.key in self._waiting:
                self._waiting[query.key].append((tile, ask, frame))
            else:
                self._waiting[query.key] = [(tile, ask, frame)]
                yield query


def _drain(queue: deque[tuple[Tile, Ask, Frame, Answer]]) -> Iterator[tuple[Tile, Ask, Frame, Answer]]:
    while queue:
        yield queue.popleft()


def screen(
    patches: Iterable[Patch], asker: Asker, system: System, *, total: int, progress: Progress = no_progress
) -> dict[int, TileVerdict]:
    """Ask the system's screen question of every patch.

    Returns:
        tile index -> verdict with status ``screened``, ``screen_failed`` or ``unreadable``.
    """
    import numpy as np
    from PIL import Image

    progress("screen", 0, total)  # the clock starts before the first batch, not with its answers
    question = tasks.screen(system)
    verdicts: dict[int, TileVerdict] = {}
    focus: dict[int, float | None] = {}

    def record(verdict: TileVerdict) -> None:
        verdicts[verdict.tile.index] = verdict
        progress("screen", len(verdicts), total)

    def questions() -> Iterator[Asked]:
        for patch in patches:
            if patch.pixels is None:
                record(TileVerdict(tile=patch.tile, status="unreadable", error=patch.error))
                continue
            focus[patch.tile.index] = patch.focus
            yield patch.tile, Image.fromarray(np.ascontiguousarray(patch.pixels)), question

    for tile, ask, _, answer in asker.ask(questions()):
        sharpness = focus.pop(tile.index, None)
        chances = asker.dialect.read_choice(answer, ask)
        asker.choices_in_words += chances is not None and answer.probabilities is None
        if asker.keeper is not None:
            asker.keeper.answered(tile, usable=chances is not None)
        if chances is None:
            why = answer.error or f"the answer {answer.text[:80]!r} names none of the options"
            record(TileVerdict(tile=tile, status="screen_failed", focus=sharpness, error=why))
            continue
        p = min(1.0, max(0.0, chances[system.screen.positive]))
        record(
            TileVerdict(
                tile=tile,
                status="screened",
                p_screen=p,
                p_abnormal=p if system.screen.about_abnormality else None,
                focus=sharpness,
            )
        )
    return verdicts


def choose(verdicts: Mapping[int, TileVerdict], *, top_k: int, exhaustive: bool = False) -> list[Tile]:
    """The tiles worth the dear questions: the highest ``p_screen`` first, ties by plan order; in plan order."""
    screened = [v for v in verdicts.values() if v.p_screen is not None]
    if not exhaustive:
        screened = sorted(screened, key=lambda v: (-(v.p_screen or 0.0), v.tile.index))[:top_k]
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
        verdicts: what screening said; the result repeats it for these tiles, with the details added.
        bounds: the slide in level-0 pixels; boxes are clipped to it.
        age: of the patient in years, where it was supplied: some labels are asked for from an age on.

    Returns:
        tile index -> verdict with status ``detailed``, or ``detail_failed`` where any question went unanswered
        (what was answered is kept).
    """
    import numpy as np
    from PIL import Image

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

    def questions() -> Iterator[Asked]:
        for patch in patches:
            state = states[patch.tile.index] = _Detail()
            if patch.pixels is None:
                state.errors.append(patch.error or "unreadable on the second reading")
                finish(patch.tile, states.pop(patch.tile.index))
                continue
            image = Image.fromarray(np.ascontiguousarray(patch.pixels))
            for ask in wanted:
                yield patch.tile, image, ask

    for tile, ask, frame, answer in asker.ask(questions()):
        state = states[tile.index]
        _take(answer, ask, frame, tile, asker.dialect, state, bounds)
        state.answers += 1
        if state.answers == len(wanted):
            order = {ask.target: n for n, ask in enumerate(wanted)}
            state.asked.sort(key=lambda label: order[label])
            state.boxes.sort(key=lambda found: (order.get(found.label, 0), found.box.y0, found.box.x0))
            finish(tile, states.pop(tile.index))
    return finished


def _take(answer: Answer, ask: Ask, frame: Frame, tile: Tile, dialect: Dialect, state: _Detail, bounds: Box) -> None:
    """Add one answer to its tile's state; boxes become level-0 pixels here and nowhere else."""
    if answer.status == "failed":
        state.errors.append(f"{ask.task} {ask.target}: {answer.error or 'no answer'}".strip())
        return
    state.truncated |= answer.status == "truncated"
    if ask.task == "describe":
        state.description = dialect.read_text(answer)
        return
    reading = dialect.read_boxes(answer, frame, ask.target)
    if not reading.understood:
        state.truncated |= reading.truncated
        state.errors.append(f"ground {ask.target}: {answer.text[:80]!r} has neither a box nor words for none")
        return
    state.asked.append(ask.target)
    state.dropped += reading.dropped
    state.truncated |= reading.truncated
    for found in reading.boxes:
        box = tile.to_level0(found.box).clipped(bounds)
        if box is None:
            state.dropped += 1
        else:
            state.boxes.append(LabelledBox(found.label, box, found.score))
