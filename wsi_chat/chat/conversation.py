"""Conversation: many questions about one slide, region or picture.

Questions about the slide are answered from its record (verdict, tiles, journal); questions about what is in view go
to the model with that place at the magnification that suits it, in the model's own chat template.

    chat = wsi_chat.Conversation("out/slide-1a2b3c4d")
    chat.say("why?").text
    for piece in chat.stream("/tile t000042"): ...
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from reports.language import Words
from tilers.field import Field
from wsi_chat.analysis.result import SlideResult
from wsi_chat.asking.answer import wanted
from wsi_chat.asking.intent import Guess, find_label, guess, out_of_grammar
from wsi_chat.chat.history import Thread
from wsi_chat.chat.opening import inherited_settings, result_of
from wsi_chat.chat.record import ID, RecordAnswer, SlideFacts, corners
from wsi_chat.chat.sight import Sight
from wsi_chat.chat.slash_commands import Reading, read_command
from wsi_chat.chat.transcript import Reply, Transcript, write_transcript
from wsi_chat.dialects.reading import read_grounding, why_no_choice
from wsi_chat.engines.model import Model
from wsi_chat.engines.protocol import stream
from wsi_chat.errors import AnswerError, SettingError, SlideError, WsiChatError
from wsi_chat.remarks import FieldValue, together
from wsi_chat.schema import DISCLAIMER, Answer, Box, LabelledBox, Language, Remark
from wsi_chat.settings import resolve
from wsi_chat.terminology import load_system

if TYPE_CHECKING:
    from wsi_chat.dialects import Frame
    from wsi_chat.engines import Engine
    from wsi_chat.tasks import Ask

HERE = re.compile(
    r"\b(?:here|this|that|it|in view)\b|\b(?:region|tile|field|box|picture|image)\b"
    r"|这里|此处|这个|该区域|视野|瓦片",
    re.I,
)
BOXES_NAMED = 12
"""Boxes that an answer names by their place, at most."""


class Conversation:
    """A conversation about a run folder (``OUT/<slide id>``), a slide or an image. A context manager.

    Args:
        source: a run folder, a `SlideResult`, a slide file or an image.
        slide: where the slide file is now, if it was moved since the run.
        engine: one that is loaded already, or the name of one as a setting; None loads the one that the settings name.
            The model is loaded when it is first asked.
        config: a YAML file of settings.
        **settings: fields of `Settings`; those not given are the run's own.

    Attributes:
        notes: what a user should know at the start: the reminder, a slide that is missing.
        replies: every exchange so far.

    Raises:
        WsiChatError: the source is no run folder, slide or image, or a setting cannot be used.
    """

    def __init__(
        self,
        source: str | Path | SlideResult,
        *,
        slide: str | Path | None = None,
        engine: Engine | str | None = None,
        config: str | Path | None = None,
        environ: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(engine, str):
            settings["engine"], engine = engine, None
        result = result_of(source, slide)
        inherited = {} if result is None else inherited_settings(result)
        given = {**inherited, **{key: value for key, value in settings.items() if value is not None}}
        effective, _ = resolve(given, config=Path(config) if config else None, environ=environ)
        self.notes: list[str] = [DISCLAIMER]
        self.replies: list[Reply] = []
        self._model = Model(effective, given=engine)
        self._system = load_system(effective.specimen)
        self._words = Words(effective.language, self._system)
        self.facts = None if result is None else SlideFacts(result, self._system, self._model.dialect, self._words)
        self._sight = Sight(source if result is None else result, self._model, self._system, self.facts, self._words)
        if self._sight.missing:
            self.notes.append(self._words.remark(self._sight.missing))
        if result is None and self._sight.reader is not None:  # a report has said it of an analyzed slide
            self.notes += map(self._words.remark, self._sight.reader.slide.notes)
        self._thread = Thread(self._model.dialect)
        self._asked_of = ""

    def speak(self, language: Language) -> None:
        """Answer in this language from now on; the model's own words stay as they are."""
        if language != self._words.language:
            self._words = Words(language, self._system)
            self._sight.words = self._words
            if self.facts is not None:
                self.facts.words = self._words

    # ------------------------------------------------------------------------------------------ asking

    def say(self, text: str) -> Reply:
        """Ask one thing, or give a command such as ``/region 0 0 512 512``; see :meth:`stream`."""
        pieces = self.stream(text)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                reply: Reply = end.value
                return reply

    def stream(self, text: str) -> Generator[str, None, Reply]:
        """The answer as it is written. The pieces joined are the text of the Reply that the generator returns.

        What cannot be answered is explained in the reply; a dead engine raises EngineDied.
        """
        question = " ".join(text.split())
        try:
            reply = yield from self._answered(question)
        except (SettingError, SlideError, AnswerError) as error:
            reply = Reply(question=question, text=self.in_words(error), source="program", status="failed")
            yield reply.text
        self.replies.append(reply)
        return reply

    def in_words(self, error: WsiChatError) -> str:
        """What went wrong, in the language of the conversation; what has no words in it is quoted in English."""
        message, hint = error.said
        if not isinstance(message, Remark):
            message = Remark("chat.failed", error=error.message)
        return self._words.remark(together(message, "" if isinstance(error, SlideError) else hint))

    def _answered(self, question: str) -> Generator[str, None, Reply]:
        if not question:
            raise SettingError(Remark("chat.nothing_asked"), hint=Remark("chat.type_something"))
        if question.startswith("/"):
            return (yield from self._commanded(question))
        answer = self._from_record(question)
        if answer is not None:
            yield answer.text
            return self._recorded(question, answer)
        return (yield from self._from_model(question))

    def _from_record(self, question: str) -> RecordAnswer | None:
        if self.facts is None:
            return None
        here = self._sight.shown is not None and HERE.search(question) is not None
        about_slide = re.search(r"\b(?:slide|specimen|verdict|case)\b|切片|标本|结论", question, re.I) is not None
        if here and not about_slide:
            named = [name for name in ID.findall(question) if self.facts.exists(name)]
            return self.facts.about(named) if named else None
        return self.facts.answer(question, pointed=self._sight.shown is not None)

    def _recorded(self, question: str, answer: RecordAnswer) -> Reply:
        return Reply(
            question=question, text=answer.text, source="record", cites=self._existing(answer.cites), boxes=answer.boxes
        )

    def _existing(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if self.facts is not None and self.facts.exists(name))

    # ------------------------------------------------------------------------------------------ the model

    def _from_model(self, question: str) -> Generator[str, None, Reply]:
        notes: list[Remark] = []
        missing = self._sight.ensure(question, notes)
        if missing is not None:
            text = self._words.remark(missing)
            yield text
            return Reply(question=question, text=text, source="program", status="failed")
        assert self._sight.shown is not None
        guessed = guess(
            question, dialect=self._model.dialect, system=self._system, pointed=self._sight.pointed is not None
        )
        strange = out_of_grammar(guessed, question, self._model.dialect)
        if strange is not None:
            text = self._words.remark(strange)
            yield text
            return Reply(question=question, text=text, source="program", task=guessed.task, notes=self._noted(notes))
        return (yield from self._asked(question, guessed, self._sight.shown, notes))

    def _asked(self, question: str, guessed: Guess, shown: Field, notes: list[Remark]) -> Generator[str, None, Reply]:
        model = self._model
        place = None if self._sight.pointed is None else shown.to_picture(self._sight.pointed)
        ask = wanted(guessed, question, self._system, (), place)
        self._asked_of = model.engine.model_id
        before = self._thread.dropped
        query, frame = self._thread.query(
            ask, shown, model.engine, decoding={"greedy": True, "seed": model.settings.seed}
        )
        if self._thread.dropped > before:
            notes.append(Remark("chat.dropped", n=self._thread.dropped - before))
        worded = guessed.task in ("ground", "refer", "screen", "mcq")
        pieces = stream(model.engine, query)
        spoken = ""
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                answer: Answer = end.value
                break
            if not worded:
                spoken += piece
                yield piece
        reply = self._read(question, guessed, ask, frame, answer, shown, notes)
        if answer.status != "failed":
            self._thread.remember(query, self._written_out(answer, ask), shown)
        rest = reply.text if not spoken else reply.text.removeprefix(spoken)
        if not spoken or reply.text.startswith(spoken):
            if rest:
                yield rest
            return reply
        # the model's closing control tokens or spaces: what was streamed stands
        return reply.model_copy(update={"text": spoken})

    def _written_out(self, answer: Answer, ask: Ask) -> str:
        """The answer as the model would have written it in full: a choice with its option."""
        if ask.options and answer.text in ask.letters:
            return f"{answer.text}.{ask.options[ask.letters.index(answer.text)]}."
        return self._model.dialect.read_text(answer)

    def _read(
        self, question: str, guessed: Guess, ask: Ask, frame: Frame, answer: Answer, shown: Field, notes: list[Remark]
    ) -> Reply:
        dialect = self._model.dialect
        say = self._words.remark
        notes.append(Remark("chat.taken", task=guessed.task, reason=guessed.reason))
        chances: dict[str, float] | None = None
        boxes: tuple[LabelledBox, ...] = ()
        status = answer.status
        if answer.status == "failed":
            text = say(Remark("chat.no_answer", error=answer.error))
        elif ask.options:
            chances = dialect.read_choice(answer, ask)
            if chances is None:
                text, status = say(Remark("chat.no_usable", why=why_no_choice(answer))), "failed"
            else:
                best = max(chances, key=chances.__getitem__)
                text = f"{best} ({', '.join(f'{option} {p:.3f}' for option, p in chances.items())})"
        elif ask.task == "ground":
            assert self._sight.reader is not None
            reading = read_grounding(
                dialect, answer, frame, ask.target, to_level0=shown.to_level0, bounds=self._sight.reader.bounds
            )
            boxes = reading.boxes
            status = "failed" if reading.error else "truncated" if reading.truncated else status
            failed = Remark("chat.located_nothing", error=reading.error) if reading.error else None
            text = say(failed or _boxes_in_words(ask.target, boxes, self._words))
        else:
            text = dialect.read_label(answer) if ask.task == "refer" else dialect.read_text(answer)
        if status == "truncated":
            notes.append(Remark("chat.cut_off"))
        if not text:
            text, status = say(Remark("chat.empty")), "failed"
        invented = [name for name in ID.findall(text) if self.facts is None or not self.facts.exists(name)]
        if invented:
            notes.append(Remark("chat.invented", names=", ".join(invented)))
        reply = Reply(
            question=question,
            text=text,
            source="model",
            task=guessed.task,
            boxes=boxes,
            probabilities=chances,
            status=status,
        )
        return self._about_view(reply, notes)

    def _noted(self, notes: Iterable[Remark]) -> tuple[str, ...]:
        return tuple(map(self._words.remark, notes))

    def _about_view(self, reply: Reply, notes: list[Remark]) -> Reply:
        """The reply with what was in view: the place, its magnification, and the ids that lie there."""
        shown = self._sight.shown
        if shown is None:
            return reply.model_copy(update={"notes": self._noted(notes)})
        place = self._sight.pointed or shown.box
        cites = self.facts.ids_in(place) if self.facts is not None else ()
        found = tuple(name for b in reply.boxes if self.facts for name in self.facts.ids_in(b.box)[:-1])
        return reply.model_copy(
            update={
                "region": shown.box,
                "mpp": shown.mpp,
                "cites": self._existing(tuple(dict.fromkeys((*found, *cites)))),
                "notes": self._noted(notes),
            }
        )

    def look_at(self, what: str | Box) -> Field:
        """Put a finding, a tile or a region (level-0 px) in view; see `Sight.look_at`."""
        return self._sight.look_at(what)

    # ------------------------------------------------------------------------------------------ commands

    def _commanded(self, question: str) -> Generator[str, None, Reply]:
        reading = read_command(question)
        answer = self._run(reading)
        yield answer.text
        reply = Reply(
            question=question,
            text=answer.text,
            source="record" if reading.name in ("why", "find") and self.facts else "program",
            cites=self._existing(answer.cites),
            boxes=answer.boxes,
        )
        if reading.name in ("region", "tile", "find") and self._sight.shown is not None:
            return reply.model_copy(update={"region": self._sight.shown.box, "mpp": self._sight.shown.mpp})
        return reply

    def _run(self, reading: Reading) -> RecordAnswer:
        if reading.name == "help":
            return RecordAnswer(self._words.remark(Remark("chat.help")))
        if reading.name == "save":
            data, text = self.save(reading.text)
            return RecordAnswer(self._words.remark(Remark("chat.saved", data=str(data), text=str(text))))
        if reading.name == "slide":
            self._sight.clear()
            return RecordAnswer(self._words.remark(Remark("chat.nothing_in_view")))
        if reading.name == "region":
            assert reading.region is not None
            self._sight.look_at(reading.region)
            return self._sight.describe()
        if self.facts is None:
            raise SettingError(Remark("chat.needs_record", name=reading.name), hint=Remark("chat.analyze_first"))
        if reading.name == "why":
            return self.facts.why()
        if reading.name == "tile":
            about = self.facts.about([reading.text])
            self.look_at(reading.text)
            viewed = self._sight.describe()
            return RecordAnswer(f"{about.text}\n{viewed.text}", about.cites or viewed.cites, about.boxes)
        return self._find(reading.text)

    def _find(self, label: str) -> RecordAnswer:
        assert self.facts is not None
        answer = self.facts.of_label(find_label(label, self._model.dialect, self._system) or label)
        if answer.cites and answer.boxes and self._sight.reader is not None:
            self.look_at(answer.cites[0])
            here = self._words.remark(Remark("chat.in_view", id=answer.cites[0]))
            return RecordAnswer(f"{answer.text}\n{here}", answer.cites, answer.boxes)
        return answer

    # ------------------------------------------------------------------------------------------ keeping

    @property
    def transcript(self) -> Transcript:
        """Every exchange so far."""
        report = None if self.facts is None else self.facts.report
        reader = self._sight.reader
        about = report.slide.id if report is not None else reader.slide.name if reader is not None else ""
        name = self._asked_of or (report.provenance.model.revision if report is not None else "not asked")
        return Transcript(
            about=about,
            fingerprint=report.slide.fingerprint if report is not None else "",
            model=name,
            dialect=self._model.dialect.name,
            replies=tuple(self.replies),
        )

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write the conversation as ``<path>.json`` and ``<path>.md``. Raises OutputError."""
        try:
            return write_transcript(self.transcript, Path(path))
        except WsiChatError as error:
            hint = Remark("chat.name_file")
            raise SettingError(Remark("chat.not_saved", error=error.message), hint=hint) from error

    def close(self) -> None:
        """Release the slide, and the model if the conversation loaded it."""
        self._sight.close()
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _boxes_in_words(target: str, boxes: tuple[LabelledBox, ...], words: Words) -> Remark:
    if not boxes:
        return Remark("chat.none_here", target=target)
    where = "; ".join(
        words.remark(Remark("chat.box", label=b.label, corners=corners(b.box))) for b in boxes[:BOXES_NAMED]
    )
    known: dict[str, FieldValue] = {"n": len(boxes), "target": target, "where": where}
    more = len(boxes) - BOXES_NAMED
    return Remark("chat.boxes_more", **known, more=more) if more > 0 else Remark("chat.boxes", **known)
