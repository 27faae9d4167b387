"""How one question is put to fields and what is made of the answers: orders, views, contrast, zoom, merging."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, permutations
from math import factorial
from typing import TYPE_CHECKING, Any

from reports.language import Words
from tilers.field import Field, FieldReader, keep_inside
from tilers.spots import EDGE_PX, hot_spots
from wsi_chat import tasks
from wsi_chat.asking.intent import Guess, out_of_grammar
from wsi_chat.asking.joining import in_words, merged, screened
from wsi_chat.asking.result import AskResult, FieldAnswer, UnreadField
from wsi_chat.dialects.reading import Grounding, read_grounding, why_no_choice
from wsi_chat.dialects.views import beside, contrasted_choice, degraded, joined, mean_choice, other_views
from wsi_chat.engines.asker import Answered, Asked, Asker
from wsi_chat.engines.model import Model
from wsi_chat.schema import AnswerStatus, Box, LabelledBox, Remark

if TYPE_CHECKING:
    from wsi_chat.dialects import Dialect
    from wsi_chat.tasks import Ask
    from wsi_chat.terminology import System

POINTING = ("refer", "region")
CHOOSING = ("screen", "mcq")


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
    dropped: int = 0
    notes: list[Remark] = field(default_factory=list)
    _asker: Asker | None = None

    @property
    def _dialect(self) -> Dialect:
        return self.model.dialect

    def answer(self, fields: Sequence[Field]) -> AskResult:
        """Ask about every field, and join the answers."""
        started = time.perf_counter()
        self._announce()
        answers = self._choose(fields) if self.guessed.task in CHOOSING else self._say(fields)
        return self._result(fields, answers, time.perf_counter() - started)

    def _announce(self) -> None:
        strange = out_of_grammar(self.guessed, self.question, self._dialect)
        if strange is not None:
            self.notes.append(Remark("ask.means_nothing", why=strange))
        views, kind, dialect = self.model.settings.views, self.guessed.task, self._dialect.name
        if views != "none" and not self._dialect.several_images:
            if kind in CHOOSING:
                self.notes.append(Remark("ask.one_picture_choice", dialect=dialect))
            elif kind == "ground":
                self.notes.append(Remark("ask.one_picture_boxes", dialect=dialect))
            else:
                self.notes.append(Remark("ask.one_picture_text", dialect=dialect, task=kind))
        if self.model.settings.contrast != "none" and kind not in CHOOSING:
            self.notes.append(Remark("ask.no_contrast", task=kind))
        if self.model.settings.zoom > 1 and kind != "ground":
            self.notes.append(Remark("ask.no_zoom", task=kind))

    # ------------------------------------------------------------------------------------------ putting questions

    @property
    def asker(self) -> Asker:
        """Puts the questions; it loads the model when the first one is asked."""
        if self._asker is None:
            decoding = {"greedy": True, "seed": self.model.settings.seed}
            self._asker = Asker(self.model.engine, self._dialect, None, decoding)
        return self._asker

    def _put(self, asked: Sequence[Asked[Any]]) -> list[Answered[Any]]:
        """The answers, in the order of the questions."""
        numbered = [replace(one, context=(number, one.context)) for number, one in enumerate(asked)]
        answers: dict[int, Answered[Any]] = {}
        for given in self.asker.ask(numbered):
            number, context = given.context
            answers[number] = replace(given, asked=replace(given.asked, context=context))
        return [answers[number] for number in range(len(asked))]

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
        several = self._dialect.several_images
        near = beside(views, settings.views) if several else None
        alone = () if several else views
        pictures = [(shown, shown.image, near), *((view, view.image, None) for view in alone)]
        if settings.contrast != "none":
            pictures.append((shown, degraded(shown.image, settings.contrast), None))
        put = self._put(
            [
                Asked(ask, image, None, name=where.id, beside=together)
                for where, image, together in pictures
                for ask in asks
            ]
        )
        chances: list[dict[str, float]] = []
        for number in range(len(pictures)):
            part = put[number * len(asks) : (number + 1) * len(asks)]
            read = [self._dialect.read_choice(given.answer, given.ask) for given in part]
            missing = next((given for given, found in zip(part, read, strict=True) if found is None), None)
            if missing is not None:
                why = why_no_choice(missing.answer)
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
            views = self._views_of(shown) if self._dialect.several_images else ()
            near = beside(views, self.model.settings.views)
            asked.append(Asked(question, shown.image, shown, name=shown.id, beside=near))
        answers = [self._read(given) for given in self._put(asked)]
        if self.guessed.task == "ground":
            answers = [self._closer(shown, given) for shown, given in zip(fields, answers, strict=True)]
        return answers

    @property
    def _points(self) -> bool:
        return self.region is not None and self.guessed.task in (*POINTING, "phrase")

    def _read(self, given: Answered[Field]) -> FieldAnswer:
        shown, answer = given.context, given.answer
        place = {"id": shown.id, "box": shown.box, "mpp": shown.mpp}
        if answer.status == "failed":
            return FieldAnswer(**place, answer="", status="failed", error=answer.error or "no answer")
        text = self._dialect.read_text(answer)
        boxes: tuple[LabelledBox, ...] = ()
        status: AnswerStatus = answer.status
        error = ""
        if given.ask.task == "ground":
            reading = self._grounding(given)
            self.dropped += reading.dropped
            boxes, error = reading.boxes, reading.error
            status = "failed" if error else "truncated" if reading.truncated else status
        elif given.ask.task == "refer":
            text = self._dialect.read_label(answer)
        if not text and not error:
            status, error = "failed", "the answer is empty"
        return FieldAnswer(**place, answer=text, boxes=boxes, status=status, error=error)

    def _grounding(self, given: Answered[Field], usable: Callable[[Box], bool] | None = None) -> Grounding:
        return read_grounding(
            self._dialect,
            given.answer,
            given.frame,
            given.ask.target,
            to_level0=given.context.to_level0,
            bounds=self.reader.bounds,
            usable=usable,
        )

    def _closer(self, shown: Field, given: FieldAnswer) -> FieldAnswer:
        """Boxes of the quarters (one question each, where the model takes one picture) and of the second look."""
        settings = self.model.settings
        question = tasks.ground(self.guessed.target)
        near = () if self._dialect.several_images else self._views_of(shown)
        if settings.zoom > 1 and given.boxes:
            spots = hot_spots(shown.tile, given.boxes, settings.zoom)
            near += tuple(self.reader.read(spot.box, f"{shown.id}/zoom{n}") for n, spot in enumerate(spots, start=1))
        extra: list[LabelledBox] = []
        for closer in self._put([Asked(question, view.image, view, name=view.id) for view in near]):
            view = closer.context
            reading = self._grounding(closer, _whole_in(view, shown))
            self.dropped += reading.dropped
            if reading.error:
                self.notes.append(Remark("ask.closer_failed", id=view.id, error=reading.error))
                continue
            if reading.truncated:
                self.notes.append(Remark("ask.closer_cut_off", id=view.id))
            extra += reading.boxes
        inside, _ = keep_inside(extra, shown.box)
        clipped = [(b, b.box.clipped(shown.box)) for b in inside]
        found = tuple(LabelledBox(b.label, box, b.score) for b, box in clipped if box is not None)
        return given.model_copy(update={"boxes": given.boxes + found})

    # ------------------------------------------------------------------------------------------ the result

    def _result(self, fields: Sequence[Field], answers: Sequence[FieldAnswer], seconds: float) -> AskResult:
        say = Words(self.model.settings.language, self.system).remark
        good = [a for a in answers if a.status != "failed"]
        boxes, chances, choice = self._boxes(fields, good), None, None
        total = len(fields) + len(self.reader.unread)
        joined_screen = None
        if good and self.guessed.task == "screen" and total > 1:
            joined_screen = screened(good, positive=self.system.screen.positive, total=total)
            chances, choice = joined_screen.highest.probabilities, joined_screen.choice
        elif good and self.guessed.task in CHOOSING:
            chances = mean_choice([a.probabilities for a in good if a.probabilities is not None])
            choice = max(chances, key=chances.__getitem__)
        failed = len(answers) - len(good)
        if failed and good:
            self.notes.append(Remark("ask.fields_failed", failed=failed, n=len(answers)))
        status: AnswerStatus = "ok" if good else "failed"
        if any(a.status == "truncated" for a in good):
            status = "truncated"
        if not good:
            self.notes.append(Remark("ask.no_usable", error=answers[0].error))
        elif self.model.settings.contrast != "none" and chances is not None:
            blank = self.model.settings.contrast == "blank"
            self.notes.append(Remark("ask.calibrated_blank") if blank else Remark("ask.calibrated_blur"))
        if joined_screen is not None:
            answer = say(joined_screen.text)
        else:
            answer = choice if choice is not None else "\n".join(map(say, in_words(self.guessed, good, boxes)))
        return AskResult(
            question=self.question,
            task=self.guessed.task,
            task_reason=say(self.guessed.reason),
            target=self.guessed.target or (self.system.screen.positive if self.guessed.task == "screen" else ""),
            answer=answer if good else "",
            status=status,
            choice=choice,
            probabilities=chances,
            boxes=tuple(boxes),
            dropped_boxes=self.dropped,
            region=self.region,
            fields=tuple(answers),
            fields_total=total,
            positive_fields=None if joined_screen is None else joined_screen.positive_fields,
            highest=None if joined_screen is None else joined_screen.highest.id,
            unread=tuple(UnreadField(id=tile.id, box=tile.box) for tile in self.reader.unread),
            notes=tuple(map(say, (*self.reader.slide.notes, *self.reader.notes, *self.notes))),
            file_name=self.reader.slide.name,
            model=self.model.engine.model_id,
            dialect=self._dialect.name,
            queries=0 if self._asker is None else self._asker.queries,
            seconds=round(seconds, 3),
        )

    def _boxes(self, fields: Sequence[Field], answers: Sequence[FieldAnswer]) -> list[LabelledBox]:
        by_id = {shown.id: shown for shown in fields}
        settings = self.model.settings
        boxes = [found for given in answers for found in given.boxes]
        if len(answers) > 1 or settings.zoom > 1 or settings.views != "none":
            boxes = merged([(by_id[a.id], a.boxes) for a in answers], self.system, self.reader.bounds)
        inside, outside = keep_inside(boxes, self.region)
        if outside:
            self.notes.append(Remark("ask.beside", n=outside))
        return inside


def _whole_in(view: Field, shown: Field) -> Callable[[Box], bool]:
    """Whether a box of a view's picture lies in it whole: a closer view cuts what ends at its own border.

    A border that is also the field's, or that of a wider view, cuts nothing that the field would show.
    """
    w, h = view.image.size
    inner, outer = view.box, shown.box
    if inner.width >= outer.width:
        return lambda box: True
    return lambda box: (
        not (
            (box.x0 <= EDGE_PX and inner.x0 > outer.x0)
            or (box.y0 <= EDGE_PX and inner.y0 > outer.y0)
            or (box.x1 >= w - EDGE_PX and inner.x1 < outer.x1)
            or (box.y1 >= h - EDGE_PX and inner.y1 < outer.y1)
        )
    )
