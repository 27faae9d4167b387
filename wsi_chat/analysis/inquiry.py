"""Several lines of questioning put to one engine as one stream, so that it is not drained between them.

Whoever asks (the screening, the closer look, the count of cells, the controls) gives the questions that can be asked
now and takes its own answers. What is asked does not depend on the order in which answers come, only when it is asked.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from wsi_chat.engines.asker import Answered, Asked, Asker


class Inquiry(Protocol):
    """A line of questioning."""

    def questions(self) -> Iterator[Asked[Any]]:
        """The questions that can be asked now. Called again once they are asked, as answers may have led to more."""
        ...

    def take(self, given: Answered[Any]) -> None:
        """One of its questions was answered."""
        ...


def ask_all(asker: Asker, *inquiries: Inquiry) -> list[float]:
    """Ask everything that these have to ask, each question as soon as it can be; of several, an earlier one's first.

    Returns:
        When each had its last answer (`time.perf_counter`); of one that asked nothing, when it was begun.

    Raises:
        EngineDied: as `Asker.ask`; what was answered is in the journal.
    """
    moments = [time.perf_counter()] * len(inquiries)
    asked = -1
    while asked != 0:  # answers of one round may have led to questions when its last one had been pulled
        asked = 0
        questions = _merged(inquiries)
        try:
            for given in asker.ask(questions):
                asked += 1
                number, context = given.context
                inquiries[number].take(replace(given, asked=replace(given.asked, context=context)))
                moments[number] = time.perf_counter()
        finally:
            questions.close()
    return moments


def _merged(inquiries: tuple[Inquiry, ...]) -> Generator[Asked[tuple[int, Any]], None, None]:
    """The next question of the first that has one, until none has; each knows the number of its inquiry."""
    running: dict[int, Iterator[Asked[Any]]] = {}
    try:
        while True:
            for number, inquiry in enumerate(inquiries):
                if number not in running:
                    running[number] = inquiry.questions()
                asked = next(running[number], None)
                if asked is not None:
                    yield replace(asked, context=(number, asked.context))
                    break
                del running[number]
            else:
                return
    finally:
        for questions in running.values():
            if isinstance(questions, Generator):
                questions.close()
