"""A deterministic engine for tests: answers from a table or a function, breaks where it is told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from wsi_chat.engines.protocol import EngineCrashed, failed
from wsi_chat.schema import Answer, Query

CONTROL = "control/"
"""Start of the names of control questions (`wsi_chat.analysis.controls.PREFIX`)."""

Reply = str | Mapping[str, float] | Answer
Script = Callable[[Query], Reply] | Mapping[str, Reply]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with the n-th query (from 0) that the engine is asked.

    ``fail``: the answer is marked failed. ``raise``: the script raises (also a failed answer). ``die``: the
    engine crashes before answering. ``truncate``: the text stops after ``keep`` characters. ``refuse``: a
    polite refusal. ``delay``: ``seconds`` pass first. ``kill``: SIGKILL to this process.
    """

    at: int
    kind: Literal["fail", "raise", "die", "truncate", "refuse", "delay", "kill"]
    keep: int = 20
    seconds: float = 0.0


class ScriptedEngine:
    """Answers from ``script``: a function of the query, or a table task -> reply.

    A reply is the answer's text, or probabilities over the query's choices (scaled to sum to 1), or a whole
    Answer. ``asked`` records every query in order. ``faults`` hit by position; each one strikes once.

    ``controls``: a ``healthy`` engine answers control questions as a model that sees would, and neither records nor
    counts them; ``scripted`` ones go to the script like any other.
    """

    name = "scripted"

    def __init__(
        self,
        script: Script,
        *,
        faults: Iterable[Fault] = (),
        model_name: str = "scripted",
        revision: str = "0",
        batch: int = 1,
        controls: Literal["healthy", "scripted"] = "healthy",
    ) -> None:
        self._script = script
        self._controls = controls
        self._faults = {fault.at: fault for fault in faults}
        self.model_name = model_name
        self.model_id = f"{model_name}@{revision}"
        self.lookahead = batch
        self.asked: list[Query] = []
        self.closed = False

    def answer(self, queries: Iterable[Query]) -> Iterator[Answer]:
        """One answer per query; within a batch of ``lookahead`` the last asked is answered first."""
        source = iter(queries)
        while batch := list(islice(source, self.lookahead)):
            replies = []
            for query in batch:
                if self._controls == "healthy" and query.tile_id.startswith(CONTROL):
                    replies.append(self._healthy(query))
                    continue
                self.asked.append(query)
                replies.append(self._one(query, self._faults.pop(len(self.asked) - 1, None)))
            yield from reversed(replies)

    def _one(self, query: Query, fault: Fault | None) -> Answer:
        kind = fault.kind if fault else ""
        if fault and kind == "delay":
            time.sleep(fault.seconds)
        elif kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "die":
            raise EngineCrashed("scripted crash")
        elif kind == "fail":
            return failed(query, "scripted failure")
        elif kind == "refuse":
            return Answer(query.key, query.task, "I cannot help with medical images.")
        try:
            if kind == "raise":
                raise RuntimeError("scripted exception")
            answer = self._said(query)
        except EngineCrashed:
            raise
        except Exception as error:
            return failed(query, f"{type(error).__name__}: {error}")
        if fault and kind == "truncate":
            text = answer.text[: fault.keep]
            return Answer(query.key, query.task, text, status="truncated", finish_reason="length")
        return answer

    def _healthy(self, query: Query) -> Answer:
        """Glass, blur and noise are negative (the first option), positive controls positive; swapped options turn."""
        kind, _, rest = query.tile_id.removeprefix(CONTROL).partition("/")
        known = {"glass": 0.02, "blurred": 0.03, "noise": 0.05, "positive": 0.98}
        before = rest.partition("/")[2]  # a swapped question is named after the answer before
        if before:
            p = 1 - float(before)  # the positive option stands first now
            return Answer(query.key, query.task, "", probabilities={query.choices[0]: 1 - p, query.choices[-1]: p})
        if kind in known:
            p = known[kind]
            return Answer(query.key, query.task, "", probabilities={query.choices[0]: 1 - p, query.choices[-1]: p})
        try:
            answer = self._said(query)
        except Exception as error:
            return failed(query, f"{type(error).__name__}: {error}")
        turned = dict(zip(query.choices, reversed(query.choices), strict=True))
        if answer.probabilities is None:
            return replace(answer, text=turned.get(answer.text.strip(), answer.text))
        return replace(answer, probabilities={turned[name]: p for name, p in answer.probabilities.items()})

    def _said(self, query: Query) -> Answer:
        if callable(self._script):
            reply = self._script(query)
        elif query.task in self._script:
            reply = self._script[query.task]
        else:
            return failed(query, f"the script has no line for {query.task}")
        if isinstance(reply, Answer):
            return reply
        if isinstance(reply, str):
            return Answer(query.key, query.task, reply)
        total = sum(reply.values())
        chances = {choice: reply.get(choice, 0.0) / total for choice in query.choices}
        return Answer(query.key, query.task, max(chances, key=chances.__getitem__), probabilities=chances)

    def close(self) -> None:
        self.closed = True
