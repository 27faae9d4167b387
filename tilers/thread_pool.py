"""Work on parts of a slide on several threads: results in order, a bounded number ahead, one handle per thread."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from wsi_chat.errors import WsiChatError

if TYPE_CHECKING:
    from tilers.slide import Slide

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    slide: Slide,
    work: Callable[[Slide, Item], Result],
    items: Iterable[Item],
    *,
    broken: Callable[[Item, Exception], Result],
    workers: int,
    ahead: int,
) -> Generator[Result]:
    """Yield ``work(slide, item)`` for each item, in order, with at most ``ahead`` results begun and not taken.

    ``work`` runs on ``workers`` threads, each with its own clone of the slide. Closing the generator early
    cancels what has not begun and waits for what has. Where ``work`` raises, or no clone can be had,
    ``broken(item, error)`` is the result.
    """
    local = threading.local()
    clones: list[Slide] = []

    def own() -> Slide:
        if not hasattr(local, "slide"):
            local.slide = slide.clone()
            clones.append(local.slide)
        handle: Slide = local.slide
        return handle

    def task(item: Item) -> Result:
        try:
            return work(own(), item)
        except MemoryError:
            raise
        except Exception as error:
            return broken(item, error)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="tiles")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(task, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for clone in clones:
            with contextlib.suppress(WsiChatError, OSError):
                clone.close()
