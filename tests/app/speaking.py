"""A scripted engine that speaks word by word, as slowly as asked, so that a reader can see and stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

from wsi_chat.engines import ScriptedEngine
from wsi_chat.schema import Answer, Query


class SpeakingEngine(ScriptedEngine):
    """Answers as `ScriptedEngine` does; ``pause`` seconds pass before each word."""

    def __init__(self, script: Callable[[Query], Any], *, pause: float = 0.0) -> None:
        super().__init__(script)
        self.pause = pause

    def stream(self, query: Query) -> Generator[str, None, Answer]:
        answer = next(iter(self.answer([query])))
        for n, word in enumerate(answer.text.split(" ")):
            time.sleep(self.pause)
            yield word if n == 0 else f" {word}"
        return answer
