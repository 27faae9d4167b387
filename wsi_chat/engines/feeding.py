"""Keeps many questions under way at once: an event loop on its own thread, fed from the caller's thread.

The engine is asked the next question the moment one may be pulled, never after an answer has been waited for, and
no more than a fixed number is under way, so that memory does not grow with the slide.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from wsi_chat.errors import EngineError
from wsi_chat.schema import Answer, Query

T = TypeVar("T")
STOP_SECONDS = 10.0


class LoopThread:
    """An asyncio event loop that runs on a daemon thread until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine there. Raises EngineError where the loop is closed."""
        if self._loop.is_closed():
            coroutine.close()
            raise EngineError("the engine is closed", hint="Load it again.")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for its result; an interrupt cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what still runs and end the thread. Safe to call twice."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(TimeoutError, CancelledError):  # what cannot be cancelled ends with the process
            self.submit(_cancel_all()).result(timeout=STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_all() -> None:
    mine = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not mine]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def feed(
    loop: LoopThread, ask: Callable[[Query], Awaitable[Answer]], queries: Iterable[Query], *, under_way: int
) -> Iterator[Answer]:
    """Answers as they come, with up to ``under_way`` questions asked and not yet answered.

    ``queries`` is pulled on the caller's thread. What ``ask`` raises is raised here, and whatever else is under
    way is cancelled; so it is when the caller stops listening.
    """
    done: queue.SimpleQueue[Future[Answer]] = queue.SimpleQueue()
    running: set[Future[Answer]] = set()
    source = iter(queries)
    more = True

    async def asked(query: Query) -> Answer:
        return await ask(query)

    try:
        while True:
            # while answers lie ready they are handed on between two pulls: a slow source must not hold them back
            while more and len(running) < under_way and (done.empty() or not running):
                query = next(source, None)
                if query is None:
                    more = False
                    break
                future = loop.submit(asked(query))
                running.add(future)
                future.add_done_callback(done.put)
            if not running:
                return
            future = done.get()
            running.discard(future)
            yield future.result()
    finally:
        for future in running:
            future.cancel()


def listen(
    loop: LoopThread, speak: Callable[[Callable[[str], None]], Awaitable[Answer]]
) -> Generator[str, None, Answer]:
    """The pieces that ``speak`` says on the loop's thread, and its Answer at the end; leaving early cancels it.

    What ``speak`` raises is raised here.
    """
    heard: queue.SimpleQueue[str | Answer | BaseException] = queue.SimpleQueue()

    async def run() -> None:
        try:
            heard.put(await speak(heard.put))
        except BaseException as error:
            heard.put(error)

    future = loop.submit(run())
    try:
        while True:
            item = heard.get()
            if isinstance(item, Answer):
                return item
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        future.cancel()
