"""Text of one answer while transformers generates it: `generate` runs on a thread and is listened to.

Stopping to listen stops the model at its next token.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from wsi_chat.schema import Answer

if TYPE_CHECKING:
    import torch

UNFINISHED = "\ufffd"
"""What a tokenizer decodes bytes to that are no whole character yet."""


class Tap:
    """What `generate` calls a streamer: gets the prompt's ids first, then each new token."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue[int | list[Answer] | BaseException] = queue.SimpleQueue()
        self.stop = threading.Event()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self.heard.put(int(token))

    def end(self) -> None:
        """Nothing: the answer itself is the end."""

    def wants_stop(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion: every row of (rows, length) ``ids`` ends once nobody listens."""
        import torch

        return torch.full((ids.shape[0],), self.stop.is_set(), dtype=torch.bool, device=ids.device)


def pieces_of(run: Callable[[Tap], list[Answer]], ends: set[int], tokenizer: Any) -> Iterator[str | Answer]:
    """Run a generation of one query, giving its text in pieces and its Answer last.

    Special tokens that end an answer are not part of the text. What ``run`` raises is raised here.
    """
    import torch

    tap = Tap()
    threads = torch.get_num_threads()

    def work() -> None:
        # a new thread starts with torch's default number, and another number may round differently
        torch.set_num_threads(threads)
        try:
            tap.heard.put(run(tap))
        except BaseException as error:
            tap.heard.put(error)

    worker = threading.Thread(target=work, name="wsi-chat-stream", daemon=True)
    worker.start()
    ids: list[int] = []
    spoken = ""
    try:
        while True:
            heard = tap.heard.get()
            if isinstance(heard, BaseException):
                raise heard
            if isinstance(heard, list):
                yield heard[0]
                return
            if heard in ends:
                continue
            ids.append(heard)
            text = str(tokenizer.decode(ids, skip_special_tokens=False))
            if not text.endswith(UNFINISHED) and text.startswith(spoken) and text != spoken:
                yield text[len(spoken) :]
                spoken = text
    finally:
        tap.stop.set()
        worker.join()
