"""Several engines, each in a process of its own (one for each GPU), on one shared queue of questions.

Whoever has room gets the next question, so no process waits for another. A process that dies is started once more
and only what it had not answered is asked again, of whoever has room; the second death of one ends the run.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from wsi_chat.engines.messages import receive, send
from wsi_chat.engines.protocol import Engine, EngineCrashed, feature_engine
from wsi_chat.errors import EngineDied, EngineError, SettingError, WsiChatError
from wsi_chat.schema import Answer, Query

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
END = None
"""What ends a stream of questions; it is no end of the process."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """A worker's engine is loaded."""

    name: str
    model_name: str
    model_id: str
    lookahead: int


@dataclass(frozen=True, slots=True)
class _Gone:
    """A worker's last words. ``error`` is what its engine raised."""

    error: Exception


@dataclass(frozen=True, slots=True)
class _Look:
    """Pictures whose features are wanted of a worker."""

    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Their features, or why there are none."""

    rows: Any


@dataclass(slots=True)
class _Worker:
    """A process and what it has been asked. ``room``: questions it may hold, twice what its engine pulls ahead."""

    number: int
    process: Any
    pipe: Connection
    ready: _Ready | None = None
    held: dict[int, Query] = field(default_factory=dict)
    streaming: bool = False

    @property
    def room(self) -> int:
        # so that the next questions lie ready in the process when its engine reaches for them
        return 0 if self.ready is None else 2 * self.ready.lookahead - len(self.held)


class EnginePool:
    """An engine made of one worker process for each start function.

    Args:
        starts: functions without arguments that load an engine; picklable, called in their own process.
        environments: for each, variables to set there before anything is imported, e.g. CUDA_VISIBLE_DEVICES.

    Raises:
        EngineError: what a worker's loading raised, or its process ended while loading.
    """

    def __init__(
        self, starts: Sequence[Callable[[], Engine]], *, environments: Sequence[Mapping[str, str]] = ()
    ) -> None:
        if not starts:
            raise SettingError("a pool of no engines", hint="Name at least one GPU.")
        self._starts = list(starts)
        self._environments = list(environments) or [{} for _ in starts]
        self._restarted: set[int] = set()
        self._workers: list[_Worker] = []
        self._again: deque[tuple[int, Query]] = deque()
        self._heard_early: deque[Answer] = deque()
        self._seeing = False
        self._rows: OrderedDict[int, tuple[Image, Any]] = OrderedDict()
        try:
            self._workers = [self._started(number) for number in range(len(self._starts))]
            for worker in self._workers:
                self._await_ready(worker)
        except BaseException:
            self.close()
            raise
        first = self._workers[0].ready
        assert first is not None
        self.name, self.model_name, self.model_id = first.name, first.model_name, first.model_id
        for worker in self._workers:
            if worker.ready is not None and worker.ready.model_id != self.model_id:
                self.close()
                raise EngineError(
                    f"the workers loaded different models: {self.model_id} and {worker.ready.model_id}",
                    hint="Do not replace a checkpoint while it is loaded.",
                )
        self.lookahead = 2 * sum(worker.ready.lookahead for worker in self._workers if worker.ready)

    def _started(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work,
            args=(theirs, self._starts[number], dict(self._environments[number])),
            name=f"wsi-chat-worker-{number}",
        )
        process.start()
        theirs.close()
        return _Worker(number, process, ours)

    def _await_ready(self, worker: _Worker) -> None:
        message = self._heard(worker)
        if isinstance(message, _Ready):
            worker.ready = message
        elif isinstance(message, _Gone):
            raise message.error if isinstance(message.error, WsiChatError) else EngineError(str(message.error))
        else:
            raise EngineError(f"worker {worker.number} said {type(message).__name__} before it was ready")

    def _heard(self, worker: _Worker) -> Any:
        """The next message of a worker; where its process has ended without one, a _Gone that says so."""
        try:
            return worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            worker.process.join(STOP_SECONDS)
            code = worker.process.exitcode
            how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
            return _Gone(EngineCrashed(f"the engine process {worker.number} {how}"))

    # ------------------------------------------------------------------------------------------ asking

    def answer(self, queries: Iterable[Query]) -> Iterator[Answer]:
        """One answer per query, in the order they come.

        Raises EngineDied where a worker died again after its restart, EngineError as a worker's engine does.
        """
        if not self._workers:
            raise EngineError("the engine is closed", hint="Load it again.")
        source = enumerate(queries)
        self._again.clear()
        self._heard_early.clear()
        more = True
        try:
            while True:
                more = self._hand_out(source, self._again, more=more)
                if not (more or self._again or self._heard_early or any(worker.held for worker in self._workers)):
                    return
                by_pipe = {worker.pipe: worker for worker in self._workers}
                for pipe in wait(list(by_pipe)) if not self._heard_early else ():
                    worker = by_pipe[pipe]  # type: ignore[index]
                    self._take(worker, self._heard(worker))
                while self._heard_early:
                    yield self._heard_early.popleft()
        finally:
            if any(worker.held for worker in self._workers):
                # the listener left in the middle: what is still computed must not answer the next stream
                self.close()

    def _take(self, worker: _Worker, message: Any) -> None:
        """What a worker said: that it died or is ready, or an answer, with the features of its picture if wanted."""
        if isinstance(message, _Gone):
            self._again.extend(worker.held.items())
            self._restart(worker, message.error)
        elif isinstance(message, _Ready):
            self._welcome(worker, message)
        else:
            number, answer, rows = message
            image = next(iter(worker.held.pop(number).images), None)
            self._heard_early.append(answer)
            if image is not None and rows is not None:
                self._rows[id(image)] = image, rows[0]  # with the picture, so that no other one gets its id
                if len(self._rows) > 2 * self.lookahead:
                    self._rows.popitem(last=False)

    def image_features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """As the workers' engines give them; from the first call on, also with each answer to a screening question."""
        import numpy as np

        if not self._workers:
            raise EngineError("the engine is closed", hint="Load it again.")
        self._seeing = True
        rows = [self._rows.pop(id(image), (image, None))[1] for image in images]
        left = [place for place, row in enumerate(rows) if row is None]
        shares = [left[start :: len(self._workers)] for start in range(len(self._workers))]
        asked = [(number, _Look(tuple(images[place] for place in share))) for number, share in enumerate(shares)]
        for number, look in asked:
            with contextlib.suppress(OSError):  # one that just died is noticed below
                if look.images:
                    send(self._workers[number].pipe, look)
        found = [self._looked(number, look) if look.images else () for number, look in asked]
        for part in found:
            if isinstance(part, Exception):
                raise part
        for share, part in zip(shares, found, strict=True):
            for place, row in zip(share, part, strict=True):
                rows[place] = row
        return np.stack(rows)

    def _looked(self, number: int, look: _Look) -> Any:
        """What a worker saw, or its error. Answers that come before are kept; if it dies, its successor is asked."""
        while True:
            worker = self._workers[number]
            message = self._heard(worker)
            if isinstance(message, _Seen):
                return message.rows
            self._take(worker, message)
            if isinstance(message, _Gone):
                send(self._workers[number].pipe, look)

    def _hand_out(self, source: Iterator[tuple[int, Query]], again: deque[tuple[int, Query]], *, more: bool) -> bool:
        """Give questions to those with the most room until nobody has any. Returns whether the source has more."""
        while True:
            if max(each.room for each in self._workers) <= 0:
                return more
            numbered = again.popleft() if again else next(source, None) if more else None
            if numbered is None:
                for idle in self._workers:
                    self._send_end(idle)
                return False
            number, query = numbered
            # only now: while the question was made, a worker may have died over a picture
            worker = max(self._workers, key=lambda each: each.room)
            worker.held[number] = query
            worker.streaming = True
            # a worker that just died is noticed when it is listened to
            with contextlib.suppress(OSError):
                seen = self._seeing and query.task == "screen" and bool(query.images)
                send(worker.pipe, (number, query, seen))

    @staticmethod
    def _send_end(worker: _Worker) -> None:
        if worker.streaming:
            worker.streaming = False
            with contextlib.suppress(OSError):
                send(worker.pipe, END)

    def _restart(self, worker: _Worker, error: Exception) -> None:
        hint = "Every answer so far is saved. Run the same command again to resume."
        if worker.number in self._restarted:
            what = "could not be restarted" if worker.ready is None else "died again after its restart"
            raise EngineDied(f"an engine process {what}: {error}", hint=hint) from error
        if isinstance(error, EngineError) and not isinstance(error, EngineCrashed):
            raise error
        self._restarted.add(worker.number)
        log.warning("an engine process died (%s); restarting it once", error)
        _stop(worker)
        self._workers[self._workers.index(worker)] = self._started(worker.number)

    def _welcome(self, worker: _Worker, ready: _Ready) -> None:
        if ready.model_id != self.model_id:
            raise EngineDied(
                f"the checkpoint changed under the run: {self.model_id} became {ready.model_id}",
                hint="Finish runs before replacing a checkpoint; start a new run folder.",
            )
        worker.ready = ready

    def close(self) -> None:
        """End every process. Safe to call twice."""
        for worker in self._workers:
            worker.pipe.close()  # a worker whose pipe is closed ends by itself
        for worker in self._workers:
            _stop(worker)
        self._workers = []


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.join(STOP_SECONDS)
    for end in (worker.process.terminate, worker.process.kill):
        if worker.process.is_alive():
            end()
            worker.process.join(STOP_SECONDS)


# ---------------------------------------------------------------------------------------------- in the worker


def _work(pipe: Connection, start: Callable[[], Engine], environment: Mapping[str, str]) -> None:
    """A worker's whole life: load the engine, answer streams of questions, end with the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an engine with processes of its own must end them
    os.environ.update(environment)
    try:
        engine = start()
    except Exception as error:
        _say(pipe, _Gone(_portable(error)))
        return
    inbox: queue.SimpleQueue[tuple[int, Query, bool] | _Look | None] = queue.SimpleQueue()
    over = threading.Event()

    def read() -> None:
        # a thread of its own, so that the parent is never kept waiting by a full pipe
        try:
            while True:
                inbox.put(receive(pipe))
        except (EOFError, OSError):
            over.set()
            inbox.put(END)

    try:
        _say(pipe, _Ready(engine.name, engine.model_name, engine.model_id, engine.lookahead))
        threading.Thread(target=read, name="wsi-chat-inbox", daemon=True).start()
        while not over.is_set():
            _one_stream(pipe, engine, inbox)
    except Exception as error:
        _say(pipe, _Gone(_portable(error)))
    finally:
        engine.close()


def _one_stream(
    pipe: Connection, engine: Engine, inbox: queue.SimpleQueue[tuple[int, Query, bool] | _Look | None]
) -> None:
    """Answer questions until their end. The same question twice in a stream is answered twice."""
    waiting: dict[str, deque[tuple[int, Query, bool]]] = {}

    def queries() -> Iterator[Query]:
        while (message := inbox.get()) is not None:
            if isinstance(message, _Look):
                pipe.send(_Seen(_looked_at(engine, message.images)))
                continue
            waiting.setdefault(message[1].key, deque()).append(message)
            yield message[1]

    for answer in engine.answer(queries()):
        number, query, see = waiting[answer.key].popleft()
        rows = _looked_at(engine, query.images[:1]) if see else None
        pipe.send((number, answer, None if isinstance(rows, Exception) else rows))
        if not waiting[answer.key]:
            del waiting[answer.key]


def _looked_at(engine: Engine, images: Sequence[Image]) -> Any:
    """The features of pictures, or the error that is this picture's and not the engine's death."""
    try:
        return feature_engine(engine).image_features(images)
    except EngineCrashed:
        raise
    except WsiChatError as error:
        return _portable(error)


def _say(pipe: Connection, message: object) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        pipe.send(message)


def _portable(error: Exception) -> Exception:
    """The error as one that can be sent: of this program, or a crash with its words."""
    if isinstance(error, WsiChatError):
        kind = type(error)
        return kind(error.message, hint=error.hint)
    return EngineCrashed(f"{type(error).__name__}: {error}")
