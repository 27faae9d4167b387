"""How one question is put to fields and what is made of the answers: orders, views, contrast, zoom, merging."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations
from math import factorial
from typing import TYPE_CHECKING

from tilers.field import Field, FieldReader, keep_inside
from wsi_chat import tasks
from wsi_chat.analysis.views import (
    ViewedDialect,
    contrasted_choice,
    degraded,
    joined,
    mean_choice,
    other_views,
    takes_many,
)
from wsi_chat.asking.intent import Guess, out_of_grammar
from wsi_chat.engines.model import Model
from wsi_chat.schema import Answer, AnswerStatus, Box, LabelledBox, Query, Record, TaskName, TileVerdict

if TYPE_CHECKING:
    from PIL import Image

    from wsi_chat.dialects import Dialect, Frame
    from wsi_chat.tasks import Ask
    from wsi_chat.terminology import System

POINTING = ("refer", "region")
CHOOSING = ("screen", "mcq")


class FieldAnswer(Record):
    """What was said of one field. ``box`` is the level-0 rectangle shown; ``boxes`` are level-0 pixels."""

    id: str
    box: Box
    mpp: float | None
    answer: str
    probabilities: dict[str, float] | None = None
    boxes: tuple[LabelledBox, ...] = ()
    status: AnswerStatus = "ok"
    error: str = ""


class AskResult(Record):
    """The answer to one question.

    ``boxes`` are level-0 pixels, cells seen by several fields once. ``probabilities`` are over the options, the
    mean over fields; ``task_reason`` says how the task was chosen; ``target`` is the class that was located, or the
    positive option of a screening question; ``notes`` what to know when reading the answer.
    """

    question: str
    task: TaskName
    task_reason: str
    target: str = ""
    answer: str
    status: AnswerStatus
    choice: str | None = None
    probabilities: dict[str, float] | None = None
    boxes: tuple[LabelledBox, ...] = ()
    dropped_boxes: int = 0
    region: Box | None = None
    fields: tuple[FieldAnswer, ...] = ()
    notes: tuple[str, ...] = ()
    file_name: str
    model: str
    dialect: str
    queries: int
    seconds: float
    drawing: str | None = None
    disclaimer: str = "Research use only. Not a diagnosis; not for clinical decisions."


def wanted(guessed: Guess, question: str, system: System, options: tuple[str, ...], region: Box | None) -> Ask:
    """The question as an `Ask`; ``region`` in pixels of the picture that is shown."""
    kind = guessed.task
    if kind == "screen":
        return tasks.screen(system)
    if kind == "mcq":
        return tasks.mcq(question or system.screen.topic, options)
    if kind == "ground":
        return tasks.ground(guessed.target)
    if kind == "refer":
        assert region is not None
        return tasks.refer(region)
    if kind == "describe":
        return tasks.describe()
    if kind == "phrase":
        return tasks.phrase(question, region=region)
    return tasks.vqa(question, region=region if kind == "region" else None)


def option_orders(options: tuple[str, ...], orders: int, *, seed: int = 0) -> list[tuple[str, ...]]:
    """The orders in which options are listed: as given for 1; else ``orders`` that do not depend on the given one.

    They come in turns of a shuffled list, so that every option takes every place equally often where ``orders`` is
    a multiple of their number; never more than there are.
    """
    if orders == 1:
        return [options]
    canonical = sorted(options, key=lambda option: (option.casefold(), option))
    count = len(canonical)
    if count <= 6 and orders >= factorial(count):
        return list(permutations(canonical))
    draw = random.Random(seed)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < orders:
        draw.shuffle(canonical)
        for turn in range(count):
            found.setdefault(tuple(canonical[turn:] + canonical[:turn]))
    return list(islice(found, orders))


@dataclass(slots=True)
class Asking:
    """One question put to one or more fields: builds the queries, joins the answers."""

    model: Model
    system: System
    reader: FieldReader
    guessed: Guess
    question: str
    choices: tuple[str, ...]
    region: Box | None
    orders: int = 1
    queries: int = 0
    dropped: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def _dialect(self) -> Dialect:
        return self.model.dialect

    def answer(self, fields: Sequence[Field]) -> AskResult:
        """Ask every field, and join what was said."""
        started = time.perf_counter()
        self._announce()
        answers = self._choose(fields) if self.guessed.task in CHOOSING else self._say(fields)
        return self._result(fields, answers, time.perf_counter() - started)

    def _announce(self) -> None:
        strange = out_of_grammar(self.guessed, self.question, self._dialect)
        if strange:
            self.notes.append(f"{strange} The answer below means nothing.")
        views, kind = self.model.settings.views, self.guessed.task
        if views != "none" and not takes_many(self._dialect):
            if kind in CHOOSING:
                how = "each is asked by itself and the scores are joined"
            elif kind == "ground":
                how = "each is asked by itself and the boxes are merged"
            else:
                how = f"and a {kind} answer cannot be joined: views are left out"
            self.notes.append(f"The dialect {self._dialect.name} takes one picture in a question: {how}.")
        if self.model.settings.contrast != "none" and kind not in CHOOSING:
            self.notes.append(f"contrast calibrates a score, and a {kind} question has none: it is left out.")
        if self.model.settings.zoom > 1 and kind != "ground":
            self.notes.append(f"zoom looks again at boxes, and a {kind} question has none: it is left out.")

    # ------------------------------------------------------------------------------------------ putting questions

    def _put(self, asked: Sequence[tuple[Field, Image.Image, Ask, Sequence[Field]]]) -> list[tuple[Frame, Answer]]:
        """Answers in order; the fields beside are shown in the same question where the model takes several."""
        engine, settings = self.model.engine, self.model.settings
        dialect = ViewedDialect(self._dialect, settings.views) if settings.views != "none" else self._dialect
        built: list[tuple[Query, Frame]] = []
        for shown, image, question, beside in asked:
            if beside and isinstance(dialect, ViewedDialect):
                dialect.show_beside(image, [view.image for view in beside])
            built.append(
                dialect.build(
                    question,
                    image,
                    tile_id=shown.id,
                    model_id=engine.model_id,
                    decoding={"greedy": True, "seed": settings.seed},
                )
            )
        distinct = {query.key: query for query, _ in built}
        self.queries += len(distinct)
        said = {answer.key: answer for answer in engine.answer(list(distinct.values()))}
        lost = [key for key in distinct if key not in said]
        for key in lost:
            said[key] = Answer(key, distinct[key].task, "", status="failed", error="no answer came back")
        return [(frame, said[query.key]) for query, frame in built]

    def _views_of(self, shown: Field) -> tuple[Field, ...]:
        return other_views(shown, self.model.settings.views, lambda box, px: self.reader.read(box, "", px=px).image)

    # ------------------------------------------------------------------------------------------ choices

    def _choose(self, fields: Sequence[Field]) -> list[FieldAnswer]:
        base = wanted(self.guessed, self.question, self.system, self.choices, None)
        asks = [
            tasks.Ask(base.task, topic=base.topic, options=order, max_tokens=base.max_tokens)
            for order in option_orders(base.options, self.orders, seed=self.model.settings.seed)
        ]
        return [self._choose_one(shown, asks, base.options) for shown in fields]

    def _choose_one(self, shown: Field, asks: Sequence[Ask], options: tuple[str, ...]) -> FieldAnswer:
        settings = self.model.settings
        views = self._views_of(shown)
        beside = views if takes_many(self._dialect) else ()
        alone = () if beside else views
        pictures = [(shown, shown.image, beside)] + [(view, view.image, ()) for view in alone]
        if settings.contrast != "none":
            pictures.append((shown, degraded(shown.image, settings.contrast), ()))
        put = self._put([(where, image, ask, near) for where, image, near in pictures for ask in asks])
        chances: list[dict[str, float]] = []
        for number in range(len(pictures)):
            part = put[number * len(asks) : (number + 1) * len(asks)]
            read = [self._dialect.read_choice(answer, ask) for (_, answer), ask in zip(part, asks, strict=True)]
            missing = next((a for (_, a), found in zip(part, read, strict=True) if found is None), None)
            if missing is not None:
                why = missing.error or f"the answer {missing.text[:80]!r} names none of the options"
                return FieldAnswer(id=shown.id, box=shown.box, mpp=shown.mpp, answer="", status="failed", error=why)
            averaged = mean_choice([found for found in read if found is not None])
            chances.append({option: averaged[option] for option in options})
        whole = self._joined(chances[0], chances[1 : 1 + len(alone)])
        if settings.contrast != "none":
            whole = contrasted_choice(whole, chances[-1])
        best = max(whole, key=whole.__getitem__)
        return FieldAnswer(id=shown.id, box=shown.box, mpp=shown.mpp, answer=best, probabilities=whole)

    def _joined(self, whole: dict[str, float], others: Sequence[dict[str, float]]) -> dict[str, float]:
        """The field's probabilities and its views': by 'anything there' for a screening question, else the mean."""
        if not others:
            return whole
        positive = self.system.screen.positive
        if self.guessed.task == "screen" and len(whole) == 2:
            p = joined(whole[positive], [other[positive] for other in others], self.model.settings.views)
            return {option: p if option == positive else 1.0 - p for option in whole}
        return mean_choice([whole, *others])

    # ------------------------------------------------------------------------------------------ text and boxes

    def _say(self, fields: Sequence[Field]) -> list[FieldAnswer]:
        asked = []
        for shown in fields:
            place = None if self.region is None else shown.to_picture(self.region)
            question = wanted(self.guessed, self.question, self.system, (), place if self._points else None)
            beside = self._views_of(shown) if takes_many(self._dialect) else ()
            asked.append((shown, shown.image, question, beside))
        answers = [
            self._read(shown, question, frame, answer)
            for (shown, _, question, _), (frame, answer) in zip(asked, self._put(asked), strict=True)
        ]
        if self.guessed.task == "ground":
            answers = [self._closer(shown, given) for shown, given in zip(fields, answers, strict=True)]
        return answers

    @property
    def _points(self) -> bool:
        return self.region is not None and self.guessed.task in (*POINTING, "phrase")

    def _read(self, shown: Field, question: Ask, frame: Frame, answer: Answer) -> FieldAnswer:
        if answer.status == "failed":
            return FieldAnswer(
                id=shown.id, box=shown.box, mpp=shown.mpp, answer="", status="failed", error=answer.error or "no answer"
            )
        text = self._dialect.read_text(answer)
        boxes: tuple[LabelledBox, ...] = ()
        status: AnswerStatus = answer.status
        error = ""
        if question.task == "ground":
            reading = self._dialect.read_boxes(answer, frame, question.target)
            self.dropped += reading.dropped
            boxes = tuple(LabelledBox(b.label, shown.to_level0(b.box), b.score) for b in reading.boxes)
            status = "truncated" if reading.truncated else status
            if not reading.understood:
                status, error = "failed", f"{text[:80]!r} has neither a box nor words for none"
        elif question.task == "refer":
            text = self._dialect.read_label(answer)
        if not text and not error:
            status, error = "failed", "the answer is empty"
        return FieldAnswer(
            id=shown.id, box=shown.box, mpp=shown.mpp, answer=text, boxes=boxes, status=status, error=error
        )

    def _closer(self, shown: Field, given: FieldAnswer) -> FieldAnswer:
        """Boxes of the quarters (one question each, where the model takes one picture) and of the second look."""
        from wsi_chat.analysis.mechanisms import hot_spots

        settings = self.model.settings
        question = tasks.ground(self.guessed.target)
        near = () if takes_many(self._dialect) else self._views_of(shown)
        if settings.zoom > 1 and given.boxes:
            spots = hot_spots(shown.tile, given.boxes, settings.zoom)
            near += tuple(self.reader.read(spot.box, f"{shown.id}/zoom{n}") for n, spot in enumerate(spots, start=1))
        if not near:
            return given
        extra: list[LabelledBox] = []
        for view, (frame, answer) in zip(near, self._put([(v, v.image, question, ()) for v in near]), strict=True):
            reading = self._dialect.read_boxes(answer, frame, question.target)
            self.dropped += reading.dropped
            if not reading.understood:
                self.notes.append(f"{view.id}: {answer.error or 'the closer look gave no usable answer'}")
                continue
            if reading.truncated:
                self.notes.append(f"{view.id}: the closer look's answer was cut off.")
            closer = view.box.width < shown.box.width
            whole = [b for b in reading.boxes if not (closer and _cut_by(b.box, view, shown))]
            extra += [LabelledBox(b.label, view.to_level0(b.box), b.score) for b in whole]
        kept, _ = keep_inside(extra, shown.box)
        clipped = [(b, b.box.clipped(shown.box)) for b in kept]
        found = tuple(LabelledBox(b.label, box, b.score) for b, box in clipped if box is not None)
        return given.model_copy(update={"boxes": given.boxes + found})

    # ------------------------------------------------------------------------------------------ the result

    def _result(self, fields: Sequence[Field], answers: Sequence[FieldAnswer], seconds: float) -> AskResult:
        good = [a for a in answers if a.status != "failed"]
        boxes, chances, choice = self._boxes(fields, good), None, None
        if good and self.guessed.task in CHOOSING:
            chances = mean_choice([a.probabilities for a in good if a.probabilities is not None])
            choice = max(chances, key=chances.__getitem__)
        failed = len(answers) - len(good)
        if failed and good:
            self.notes.append(f"{failed} of {len(answers)} fields gave no usable answer and are left out.")
        status: AnswerStatus = "ok" if good else "failed"
        if any(a.status == "truncated" for a in good):
            status = "truncated"
        if not good:
            self.notes.append(f"No usable answer: {answers[0].error}")
        elif self.model.settings.contrast != "none" and chances is not None:
            self.notes.append(f"Probabilities are calibrated against a {self._degraded()} field.")
        answer = choice if choice is not None else _text(self.guessed, good, boxes, self.system)
        return AskResult(
            question=self.question,
            task=self.guessed.task,
            task_reason=self.guessed.reason,
            target=self.guessed.target or (self.system.screen.positive if self.guessed.task == "screen" else ""),
            answer=answer if good else "",
            status=status,
            choice=choice,
            probabilities=chances,
            boxes=tuple(boxes),
            dropped_boxes=self.dropped,
            region=self.region,
            fields=tuple(answers),
            notes=(*self.reader.notes, *self.notes),
            file_name=self.reader.slide.path.name,
            model=self.model.engine.model_id,
            dialect=self._dialect.name,
            queries=self.queries,
            seconds=round(seconds, 3),
        )

    def _degraded(self) -> str:
        return {"blank": "blank", "blur": "blurred"}[self.model.settings.contrast]

    def _boxes(self, fields: Sequence[Field], answers: Sequence[FieldAnswer]) -> list[LabelledBox]:
        by_id = {shown.id: shown for shown in fields}
        settings = self.model.settings
        boxes = [found for given in answers for found in given.boxes]
        if len(answers) > 1 or settings.zoom > 1 or settings.views != "none":
            boxes = merged([(by_id[a.id], a.boxes) for a in answers], self.system, self.reader.bounds)
        kept, outside = keep_inside(boxes, self.region)
        if outside:
            self.notes.append(f"{outside} boxes lie beside the region, in the field around it, and are left out.")
        return kept


def merged(seen: Sequence[tuple[Field, Sequence[LabelledBox]]], system: System, bounds: Box) -> list[LabelledBox]:
    """Boxes of several fields as cells, each once, by the rules of `aggregators.merge_boxes`.

    Classes that the reporting system does not have are merged as benign cells, not left out.
    """
    from aggregators import merge_boxes
    from wsi_chat.terminology import Label

    known = {label.code for label in system.labels}
    strange = dict.fromkeys(b.label for _, boxes in seen for b in boxes if b.label not in known)
    pattern = system.labels[0]
    more = tuple(
        Label.model_construct(**{**dict(pattern), "code": c, "name": c, "axis": "benign", "abnormal": False})
        for c in strange
    )
    wider = system.model_copy(update={"labels": (*system.labels, *more)})
    verdicts = [TileVerdict(tile=shown.tile, status="detailed", boxes=tuple(boxes)) for shown, boxes in seen if boxes]
    return [LabelledBox(found.label, found.box) for found in merge_boxes(verdicts, wider, bounds=bounds)]


def _cut_by(box: Box, view: Field, shown: Field) -> bool:
    """Whether a closer view's box ends at that view's border, where that is not the border of the field itself."""
    from wsi_chat.analysis.mechanisms import EDGE_PX

    w, h = view.image.size
    inner = view.box
    return (
        (box.x0 <= EDGE_PX and inner.x0 > shown.box.x0)
        or (box.y0 <= EDGE_PX and inner.y0 > shown.box.y0)
        or (box.x1 >= w - EDGE_PX and inner.x1 < shown.box.x1)
        or (box.y1 >= h - EDGE_PX and inner.y1 < shown.box.y1)
    )


def _text(guessed: Guess, answers: Sequence[FieldAnswer], boxes: Sequence[LabelledBox], system: System) -> str:
    if guessed.task == "ground":
        where = "" if len(answers) == 1 else f" in {len(answers)} fields"
        return f"{len(boxes)} {guessed.target} located{where}." if boxes else f"No {guessed.target} located{where}."
    said: dict[str, list[str]] = {}
    for given in answers:
        said.setdefault(given.answer, []).append(given.id)
    if len(answers) == 1:
        return answers[0].answer
    ranked = sorted(said.items(), key=lambda item: -len(item[1]))
    return "\n".join(f"{len(ids)} of {len(answers)} fields: {text}" for text, ids in ranked)
