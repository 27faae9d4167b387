"""Puts questions to an engine, through a journal where there is one: the same question is asked once.

A question is a record (`Asked`) that comes back with its answer, so that whoever asks finds again what it was about
without keeping books of his own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from wsi_chat.dialects.reading import is_usable
from wsi_chat.engines.protocol import failed
from wsi_chat.schema import Answer, Query, Tile

if TYPE_CHECKING:
    from PIL import Image

    from wsi_chat.dialects import Dialect, Frame
    from wsi_chat.dialects.dialect import Beside
    from wsi_chat.engines.protocol import Engine
    from wsi_chat.journal import Journal
    from wsi_chat.tasks import Ask

Context = TypeVar("Context")

KNOWN_AHEAD = 32
"""Known answers, with their pictures, that may wait to be taken while the engine is asked for an unknown one."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[Context]):
    """One question about one picture, and what its asker needs to know again when the answer comes.

    Attributes:
        ask: what is wanted.
        image: the picture that it is about.
        context: the asker's own: a tile, a place, a part of a score; it comes back untouched.
        name: of the tile or field, for messages.
        beside: further pictures in the same question, of a family that takes several.
        screened: the planned tile that the picture shows as it is, where this question screens it.
    """

    ask: Ask
    image: Image.Image
    context: Context
    name: str = ""
    beside: Beside | None = None
    screened: Tile | None = None


@dataclass(frozen=True, slots=True)
class Answered(Generic[Context]):
    """A question with its answer. ``frame`` maps the answer's boxes back to the picture."""

    asked: Asked[Context]
    frame: Frame
    answer: Answer

    @property
    def ask(self) -> Ask:
        return self.asked.ask

    @property
    def context(self) -> Context:
        return self.asked.context


class ScreenWatcher(Protocol):
    """Learns which picture each screened tile was shown as, and whether its answer can be used."""

    def shown(self, tile: Tile, query: Query, *, known: bool) -> None:
        """The question about a tile was built; its answer may be known already."""
        ...

    def answered(self, tile: Tile, *, usable: bool) -> None:
        """The question about the tile was answered."""
        ...


@dataclass(slots=True)
class Asker:
    """Puts questions to an engine; counts what was new and what was known.

    Questions with the same key (the same pixels, the same words) are asked once, also within one run. Answers that
    cannot be used (a refusal, nonsense) are handed on but not kept in the journal: a rerun asks again.
    """

    engine: Engine
    dialect: Dialect
    journal: Journal | None
    decoding: Mapping[str, Any]
    answers_new: int = 0
    answers_reused: int = 0
    queries: int = 0
    """Questions that went to the engine."""
    tokens: dict[str, int] = field(default_factory=dict)
    in_words: dict[str, list[str]] = field(default_factory=dict)
    """Key -> names of the fields, for screening answers that came without probabilities."""
    probable: bool = False
    """Whether any screening answer came with probabilities."""
    keeper: ScreenWatcher | None = None
    """Keeps image features of the tiles that are screened."""
    _waiting: dict[str, list[tuple[Asked[Any], Frame]]] = field(default_factory=dict)
    _probed: bool = False
    _unkept: dict[str, Answer] = field(default_factory=dict)
    """Answers of this run that are not in the journal, so that their questions are still asked once."""
    _again: set[str] = field(default_factory=set)
    """Keys whose answer in the journal cannot be used: the next one takes its place."""

    @property
    def generated_tokens(self) -> int:
        """Tokens that the model generated for the questions asked so far, each once, also those answered earlier."""
        return sum(self.tokens.values())

    def ask(self, questions: Iterable[Asked[Context]]) -> Iterator[Answered[Context]]:
        """Answers in the order they become known, each with its question and frame.

        Pulls ``questions`` only as fast as the engine takes them. An EngineDied passes through; what was
        answered before it is in the journal.
        """
        known: deque[Answered[Context]] = deque()
        sent: dict[str, Query] = {}
        self._waiting.clear()
        source = iter(questions)
        first = list(islice(source, 1))
        for asked in first:
            self._probe(asked)
        source = chain(first, source)
        most = max(KNOWN_AHEAD, self.engine.lookahead)
        more = True

        def unknown() -> Iterator[Query]:
            nonlocal more
            for asked in source:
                query = self._unknown(asked, known, sent)
                if query is not None:
                    yield query
                elif len(known) >= most:
                    return
            more = False

        while more:
            for answer in self.engine.answer(unknown()):
                yield from _drained(known)
                sent.pop(answer.key, None)
                waiting = self._waiting.pop(answer.key, [])
                self._keep(answer, waiting)
                self.answers_new += 1
                self.tokens[answer.key] = answer.new_tokens
                for asked, frame in waiting:
                    yield Answered(asked, frame, answer)
            yield from _drained(known)
            swallowed, self._waiting = self._waiting, {}
            for key, waiting in swallowed.items():  # an engine that swallowed a question must not make it vanish
                for asked, frame in waiting:
                    yield Answered(asked, frame, failed(sent[key], "no answer came back"))

    def read_screen(self, given: Answered[Context], positive: str) -> float | None:
        """Probability of the positive option of a screening question, 0 .. 1; None where the answer names no option."""
        chances = self.dialect.read_choice(given.answer, given.ask)
        if chances is not None:
            if given.answer.probabilities is None:
                self.in_words.setdefault(given.answer.key, []).append(given.asked.name)
            else:
                self.probable = True
        if self.keeper is not None and given.asked.screened is not None:
            self.keeper.answered(given.asked.screened, usable=chances is not None)
        return None if chances is None else min(1.0, max(0.0, chances[positive]))

    @property
    def choices_in_words(self) -> int:
        """Screening answers that count although they came without probabilities, from a server that gives none."""
        return sum(map(len, self.in_words.values()))

    def retract_mixed(self) -> set[str]:
        """Names of fields whose screening answer is on another scale than the rest, and is no answer therefore.

        A yes or no is not one of many probabilities. Where some answers had them, those without are taken back, out
        of the journal too, so that a rerun asks again. Where none had them, all stay.
        """
        if not self.probable or not self.in_words:
            return set()
        if self.journal is not None:
            self.journal.forget(self.in_words)
        names = {name for shown in self.in_words.values() for name in shown}
        for key in self.in_words:
            self._unkept.pop(key, None)
        self.in_words.clear()
        return names

    def _unknown(self, asked: Asked[Context], known: deque[Answered[Context]], sent: dict[str, Query]) -> Query | None:
        """The query that the engine must answer; None where the answer is known, or is being waited for."""
        query, frame = self._built(asked)
        earlier = self._earlier(query.key, asked.ask, frame)
        if self.keeper is not None and asked.screened is not None:
            self.keeper.shown(asked.screened, query, known=earlier is not None)
        if earlier is not None:
            self.answers_reused += 1
            self.tokens[earlier.key] = earlier.new_tokens
            known.append(Answered(asked, frame, earlier))
            return None
        if query.key in self._waiting:
            self._waiting[query.key].append((asked, frame))
            return None
        self._waiting[query.key] = [(asked, frame)]
        sent[query.key] = query
        self.queries += 1
        return query

    def _probe(self, asked: Asked[Any]) -> None:
        """Ask a choice again whose answer in the journal has no probabilities: the engine may give them by now.

        If it does, all such answers are asked again; else they are reused. One question a run.
        """
        if self.journal is None or self.probable or self._probed or not asked.ask.options:
            return
        query, frame = self._built(asked)
        earlier = self.journal.get(query.key)
        if earlier is None or earlier.probabilities is not None:
            return
        self._probed = True
        for answer in self.engine.answer([query]):
            if answer.probabilities is not None and is_usable(self.dialect, answer, asked.ask, frame):
                self.probable = True
                self.journal.put(answer, replace=True)

    def _built(self, asked: Asked[Any]) -> tuple[Query, Frame]:
        return self.dialect.build(
            asked.ask,
            asked.image,
            tile_id=asked.name,
            beside=asked.beside,
            model_id=self.engine.model_id,
            decoding=self.decoding,
        )

    def _earlier(self, key: str, ask: Ask, frame: Frame) -> Answer | None:
        if key in self._unkept:
            return self._unkept[key]
        earlier = None if self.journal is None else self.journal.get(key)
        if earlier is None:
            return None
        usable = is_usable(self.dialect, earlier, ask, frame)
        if ask.options and usable and earlier.probabilities is not None:
            self.probable = True
        if not usable or (ask.options and self.probable and earlier.probabilities is None):
            self._again.add(key)
            return None
        return earlier

    def _keep(self, answer: Answer, waiting: list[tuple[Asked[Any], Frame]]) -> None:
        if answer.status == "failed" or not waiting:
            return
        asked, frame = waiting[0]
        if self.journal is not None and is_usable(self.dialect, answer, asked.ask, frame):
            self.journal.put(answer, replace=answer.key in self._again)
        else:
            self._unkept[answer.key] = answer


def _drained(queue: deque[Answered[Context]]) -> Iterator[Answered[Context]]:
    while queue:
        yield queue.popleft()
