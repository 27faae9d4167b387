"""What an engine is: the protocol, the name of a model, and the supervisor that restarts a dead engine once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from wsi_chat.errors import EngineDied, EngineError, SettingError
from wsi_chat.schema import Answer, Query

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

log = logging.getLogger(__name__)

FEATURES = "patch-mean-1"
"""Name and version of what `FeatureEngine.image_features` gives: features of another kind are not mixed with it."""


@runtime_checkable
class Engine(Protocol):
    """Answers queries. Implementations may reorder and batch; every answer carries its query's key.

    ``queries`` is pulled lazily, at most `lookahead` queries ahead of the answers, so it must not wait for one
    of them. A query that cannot be answered comes back with status ``failed``; nothing is raised for it. A
    dead engine raises EngineDied.
    """

    @property
    def name(self) -> str:
        """What runs the model: ``transformers``, ``scripted``, ..."""
        ...

    @property
    def model_name(self) -> str:
        """The model as a person names it."""
        ...

    @property
    def model_id(self) -> str:
        """Name, hash of the files and number format: part of every query's key."""
        ...

    @property
    def lookahead(self) -> int:
        """How many queries may be pulled before their answers are given."""
        ...

    def answer(self, queries: Iterable[Query]) -> Iterator[Answer]:
        """One answer per query, in any order."""
        ...

    def close(self) -> None:
        """Release the model's memory. An engine that was closed answers no more."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """What an engine may offer beside `Engine`: the text of one answer as it is written."""

    def stream(self, query: Query) -> Generator[str, None, Answer]:
        """Pieces of the text, which joined are the text of the Answer that the generator returns.

        That Answer is the one that `answer` would give. What goes wrong comes back in it, as there.
        """
        ...


@runtime_checkable
class MeasuringEngine(Protocol):
    """What an engine may offer beside `Engine`: how much of its context a question takes."""

    def room(self, query: Query) -> int | None:
        """Tokens left for the answer (below 1: the question alone is too long); None where unknown."""
        ...


@runtime_checkable
class FeatureEngine(Protocol):
    """What an engine may offer beside `Engine`: what its vision tower saw of a picture, as a vector."""

    def image_features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """The mean over the merged patches of the vision tower's output, (len(images), width) float32.

        Pictures are as a query shows them. One that was shown in a question a moment ago is not looked at again, and
        the same picture gives the same numbers whatever is beside it. May be called between two answers.

        Raises:
            EngineError: they cannot be computed (EngineCrashed where the engine cannot go on).
        """
        ...


def feature_engine(engine: Engine, *, why: str = "image features") -> FeatureEngine:
    """The engine, as one that gives image features.

    Raises:
        SettingError: it gives none; ``why`` names the setting that wants them.
    """
    inner = engine._running if isinstance(engine, SupervisedEngine) else engine
    if not isinstance(inner, FeatureEngine) or not isinstance(engine, FeatureEngine):
        raise _without_features(inner, why)
    return engine


def _without_features(engine: Engine, why: str) -> SettingError:
    return SettingError(
        f"{why}: the {engine.name} engine gives no image features.",
        hint="Run the checkpoint here with --engine transformers, or do without image features.",
    )


def stream(engine: Engine, query: Query) -> Generator[str, None, Answer]:
    """The answer to one query piece by piece; in one piece where the engine does not stream."""
    if isinstance(engine, StreamingEngine):
        return (yield from engine.stream(query))
    for answer in engine.answer([query]):
        if answer.text:
            yield answer.text
        return answer
    return failed(query, "no answer came back")


class EngineCrashed(EngineError):
    """An engine noticed that it cannot go on; its supervisor decides what follows."""


def failed(query: Query, error: str, *, seconds: float = 0.0) -> Answer:
    """The answer that stands for none: never stored as final, never counted as normal."""
    log.info("no answer to a %s question: %s", query.task, error)
    return Answer(
        key=query.key,
        task=query.task,
        text="",
        status="failed",
        finish_reason="error",
        error=error,
        seconds=seconds,
    )


class _Replaced(Exception):
    """The engine died over a picture, between two answers, and another one runs in its place."""


class SupervisedEngine:
    """An engine that is started by a function, restarted once if it crashes, and then given up.

    After a restart only the queries that had no answer yet are asked again.
    """

    def __init__(self, start: Callable[[], Engine]) -> None:
        self._start = start
        self._engine: Engine | None = start()
        self._restarted = False

    @property
    def _running(self) -> Engine:
        if self._engine is None:
            raise EngineError("the engine is closed", hint="Load it again.")
        return self._engine

    @property
    def name(self) -> str:
        return self._running.name

    @property
    def model_name(self) -> str:
        return self._running.model_name

    @property
    def model_id(self) -> str:
        return self._running.model_id

    @property
    def lookahead(self) -> int:
        return self._running.lookahead

    def answer(self, queries: Iterable[Query]) -> Iterator[Answer]:
        """One answer per query. Raises EngineDied when the engine crashes a second time."""
        source = iter(queries)
        pending: dict[str, Query] = {}
        count: Counter[str] = Counter()

        def pulled(running: Engine) -> Iterator[Query]:
            for query in source:
                pending[query.key] = query
                count[query.key] += 1
                if self._engine is not running:
                    break
                yield query
            if self._engine is not running:
                raise _Replaced

        again: list[Query] = []
        while True:
            running = self._running
            try:
                for answer in running.answer(chain(again, pulled(running))):
                    count[answer.key] -= 1
                    if count[answer.key] <= 0:
                        pending.pop(answer.key, None)
                        del count[answer.key]
                    yield answer
                    if self._engine not in (running, None):
                        raise _Replaced
                return
            except _Replaced:
                pass
            except EngineCrashed as crash:
                self._restart(crash)
            again = [query for key, query in pending.items() for _ in range(count[key])]

    def stream(self, query: Query) -> Generator[str, None, Answer]:
        """The answer piece by piece; after a restart what was said already is not said again."""
        said = ""
        while True:
            pieces = stream(self._running, query)
            again = ""
            try:
                while True:
                    try:
                        piece = next(pieces)
                    except StopIteration as end:
                        answer: Answer = end.value
                        return answer
                    again += piece
                    if len(again) > len(said):
                        yield again[len(said) :]
                        said = again
            except EngineCrashed as crash:
                self._restart(crash)

    def room(self, query: Query) -> int | None:
        """As the engine says; None where it does not."""
        return self._running.room(query) if isinstance(self._running, MeasuringEngine) else None

    def image_features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """As the engine gives them. Raises SettingError where it gives none."""
        while True:
            try:
                engine = self._running
                if not isinstance(engine, FeatureEngine):
                    raise _without_features(engine, "image features")
                return engine.image_features(images)
            except EngineCrashed as crash:
                self._restart(crash)

    def _restart(self, crash: EngineCrashed) -> None:
        if self._restarted:
            raise EngineDied(
                f"the engine died again after its restart: {crash.message}",
                hint="Every answer so far is saved. Run the same command again to resume.",
            ) from crash
        self._restarted = True
        log.warning("the engine died (%s); restarting it once", crash.message)
        name, model = self.name, self.model_id
        try:
            self._running.close()
            self._engine = None
            self._engine = self._start()
        except Exception as error:
            raise EngineDied(
                f"the {name} engine died ({crash.message}) and could not be restarted: {error}",
                hint="Every answer so far is saved. Run the same command again to resume.",
            ) from error
        if self._engine.model_id != model:
            raise EngineDied(
                f"the checkpoint changed under the run: {model} became {self._engine.model_id}",
                hint="Finish runs before replacing a checkpoint; start a new run folder.",
            )

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
