"""Asks a server that speaks the OpenAI chat-completions protocol: vLLM, SGLang, llama.cpp, a hosted model ...

Many requests are under way at once. What may pass is retried with growing pauses; a request that fails for good
marks its tile; a server that answers nobody any more is a crashed engine. The key for the server comes from the
environment and is written down nowhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from wsi_chat.address import OPENAI, OPENAI_KEY, OWN_KEY, is_openai, notice
from wsi_chat.engines.chat_requests import (
    CHOICE_FORMS,
    TEXT_FORMS,
    Form,
    ImageUrls,
    Pieces,
    estimated_tokens,
    messages_of,
    read_reply,
    request_body,
    token_count,
)
from wsi_chat.engines.feeding import LoopThread, feed, listen
from wsi_chat.engines.loading import describe_error
from wsi_chat.engines.protocol import EngineCrashed, failed
from wsi_chat.engines.server import KEY_HINT, Refused, ServedModel, Server, ServerTrouble, find_model, open_server
from wsi_chat.engines.serving import size_kwargs
from wsi_chat.errors import AnswerError, EngineError, SettingError
from wsi_chat.schema import Answer, Query

log = logging.getLogger(__name__)

CONCURRENCY = 32
"""Requests under way at once: enough to keep a server's batch full, few enough for a hosted model's limits."""

PAUSE = 0.5
"""Seconds before the first retry."""

UNUSABLE_TRIES = 2
"""Further tries of a choice whose log-probabilities are missing or no numbers."""

FAILURES_IN_A_ROW = 8
"""So many questions, or as many as are asked at once, failing one after another: the server is dead, not the tiles."""


def api_key(environ: Mapping[str, str], address: str) -> str:
    """The key for the server at an address, or empty; space around it is taken off.

    WSI_CHAT_API_KEY goes to the address that was given; OPENAI_API_KEY, which other programs use too, to OpenAI alone.

    Raises:
        SettingError: it holds what no header can carry. The key itself is not repeated.
    """
    names = (OWN_KEY, OPENAI_KEY) if is_openai(address) else (OWN_KEY,)
    name = next((name for name in names if environ.get(name, "").strip()), "")
    key = environ.get(name, "").strip()
    if not key.isascii() or not key.isprintable():
        raise SettingError(
            f"the key in {name} holds a line break or another character that no key has",
            hint="Copy the key again, in one line.",
        )
    return key


async def _connect(base_url: str, *, timeout: float, retries: int, pause: float) -> Server:
    """A connection with the key that the environment has for the address."""
    key = api_key(os.environ, base_url)
    key_hint = KEY_HINT
    if not key and os.environ.get(OPENAI_KEY, "").strip():
        key_hint = f"Set {OWN_KEY} to this server's key: {OPENAI_KEY} is sent to {OPENAI} alone."
    return await open_server(base_url, key=key, key_hint=key_hint, timeout=timeout, retries=retries, pause=pause)


def look_up(base_url: str, model: str | None, *, timeout: float = 30.0) -> ServedModel:
    """The model that a server would be asked for; raises as `OpenAIEngine` does. No image is sent."""

    async def look() -> ServedModel:
        server = await _connect(base_url, timeout=timeout, retries=1, pause=PAUSE)
        try:
            return await find_model(server, model, patience=0.0)
        finally:
            await server.close()

    loop = LoopThread("wsi-chat-look-up")
    try:
        return loop.run(look())
    finally:
        loop.close()


class OpenAIEngine:
    """An engine over one server. See `wsi_chat.engines.load_engine`.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000/v1``.
        model: the name under which the server has the model; None where it has only one.
        concurrency: requests under way at once.
        timeout: seconds that one request may take.
        retries: further tries of a request after what may pass.
        patience: seconds to wait for a server that does not answer yet.
        pixel_bounds: fewest and most pixels of an image as the model's processor is to be told; None: not told.
        pause: seconds before the first retry; each further one waits twice as long. None: `PAUSE`.
        answering: the model as the replies so far named it, where this engine takes the place of one that died.

    Raises:
        SettingError: an unusable address, or a model that the server does not have.
        EngineError: no server answers there, or it refuses the key.
    """

    name = "openai"

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        concurrency: int = CONCURRENCY,
        timeout: float = 120.0,
        retries: int = 4,
        patience: float = 0.0,
        seed: int = 0,
        pixel_bounds: tuple[int, int] | None = None,
        pause: float | None = None,
        answering: str = "",
    ) -> None:
        if concurrency < 1:
            raise SettingError(f"concurrency is {concurrency}", hint="Give 1 or more.")
        leaving = notice(base_url)
        if leaving:
            log.warning(leaving)
        pause = PAUSE if pause is None else pause
        self._loop = LoopThread("wsi-chat-openai")
        try:
            self._server: Server = self._loop.run(_connect(base_url, timeout=timeout, retries=retries, pause=pause))
            self.served: ServedModel = self._loop.run(find_model(self._server, model, patience=patience))
        except BaseException:
            self._loop.close()
            raise
        self._seed = seed
        self._bounds = pixel_bounds
        self._limit = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._urls = ImageUrls(keep=2 * concurrency)
        self._form = {True: 0, False: 0}  # for choices, for text: the first form that the server has not refused
        self._length_field = "max_tokens"
        self._counts = True  # whether it may yet be asked how many tokens a question has
        self._lost_in_a_row = 0
        self._gives_probabilities = False  # whether any choice came with them: then one without is no answer
        self.answering = answering
        self.lookahead = 2 * concurrency
        self.model_name = self.served.name
        self.model_id = self.served.id
        self.cached_tokens = 0
        """Prompt tokens that the server found in its prefix cache, where it says so."""

    def close(self) -> None:
        """Drop the connections. What is under way is given up."""
        if self._server is not None:
            try:
                self._loop.run(self._server.close())
            except EngineError:
                return  # closed before
        self._loop.close()

    def room(self, query: Query) -> int | None:
        """Tokens left for the answer (below 1: the question alone is too long); None where the server has not said.

        The server counts the question itself where it has vLLM's ``/tokenize``; else `estimated_tokens` does, which
        counts too many rather than too few. Raises AnswerError where the question cannot be asked as it is.
        """
        longest = self.served.max_model_len
        return None if longest is None else longest - self._loop.run(self._counted(query))

    async def _counted(self, query: Query) -> int:
        messages = await asyncio.to_thread(messages_of, query, self._urls)
        body: dict[str, Any] = {"model": self.served.name, "messages": messages, "add_generation_prompt": True}
        if self._bounds is not None and query.images:
            body["mm_processor_kwargs"] = size_kwargs(self._bounds)
        try:
            if self._counts:
                # beside the protocol's own path, not below it
                address = f"{self._server.address.removesuffix('/v1')}/tokenize"
                count = await self._server.post(address, body, token_count)
                if count is not None:
                    return count
                self._counts = False
        except (ServerTrouble, Refused, EngineError) as error:
            # a gateway before the server may keep all but the protocol's paths to itself
            self._counts = isinstance(error, ServerTrouble)
            log.info(
                "%s does not count a question's tokens (%s); they are estimated",
                self._server.shown,
                describe_error(error),
            )
        return estimated_tokens(query)

    def answer(self, queries: Iterable[Query]) -> Iterator[Answer]:
        """One answer per query, in the order they come.

        Raises EngineCrashed where the server is gone, EngineError where it refuses the key or the model.
        """
        yield from feed(self._loop, self._ask, queries, under_way=self.lookahead)

    def stream(self, query: Query) -> Generator[str, None, Answer]:
        """The answer piece by piece, as `StreamingEngine` says; leaving the generator ends the request."""

        async def speak(say: Callable[[str], None]) -> Answer:
            if query.choices:
                answer = await self._ask(query)
                say(answer.text)
                return answer
            return await self._spoken(query, say)

        return listen(self._loop, speak)

    async def _spoken(self, query: Query, say: Callable[[str], None]) -> Answer:
        started = time.perf_counter()
        pieces = Pieces()
        try:
            messages = await asyncio.to_thread(messages_of, query, self._urls)
            form = TEXT_FORMS[self._form[False]]
            body = self._body(query, messages, form) | {"stream": True, "stream_options": {"include_usage": True}}
            async for event in self._server.events("chat/completions", body):
                words = pieces.take(event)
                if words:
                    say(words)
            answer = self._read(pieces.reply(), query)
        except (ServerTrouble, Refused) as trouble:
            if not pieces.text:  # nothing was said yet: ask as for a tile, with its retries
                answer = await self._ask(query)
                if answer.text:
                    say(answer.text)
                return answer
            return self._lost(query, trouble, time.perf_counter() - started)
        except EngineError:
            raise
        except Exception as error:
            return failed(query, describe_error(error), seconds=time.perf_counter() - started)
        return replace(answer, seconds=time.perf_counter() - started)

    async def _ask(self, query: Query) -> Answer:
        started = time.perf_counter()
        try:
            messages = await asyncio.to_thread(messages_of, query, self._urls)
            async with self._slots:
                started = time.perf_counter()
                answer = await self._in_some_form(query, messages)
        except (ServerTrouble, Refused) as trouble:
            return self._lost(query, trouble, time.perf_counter() - started)
        except EngineError:
            raise
        except Exception as error:
            return failed(query, describe_error(error), seconds=time.perf_counter() - started)
        self._lost_in_a_row = 0
        return replace(answer, seconds=time.perf_counter() - started)

    def _lost(self, query: Query, trouble: ServerTrouble | Refused, seconds: float) -> Answer:
        """The failed answer; raises EngineCrashed where it is the server that failed, and not this one question."""
        if isinstance(trouble, ServerTrouble):
            self._lost_in_a_row += 1
            if trouble.gone or self._lost_in_a_row >= max(FAILURES_IN_A_ROW, self._limit):
                raise EngineCrashed(f"{self._server.shown}: {trouble}") from trouble
        said = describe_error(trouble).rstrip(".")
        return failed(query, f"the server {self._server.host}: {said}. {trouble.fix}", seconds=seconds)

    async def _in_some_form(self, query: Query, messages: list[dict[str, Any]]) -> Answer:
        """Ask in the richest form that the server takes; what it refuses is not offered again once a lesser one went.

        Raises Refused where it takes none, ServerTrouble where it gave none of its answers in time.
        """
        choice = bool(query.choices)
        forms = CHOICE_FORMS if choice else TEXT_FORMS
        place = self._form[choice]
        again = 0
        while True:
            form = forms[place]
            body = self._body(query, messages, form)
            try:
                answer = await self._server.post("chat/completions", body, lambda reply: self._read(reply, query))
            except Refused as refused:
                if "max_completion_tokens" in str(refused) and self._length_field == "max_tokens":
                    self._length_field = "max_completion_tokens"
                    continue
                if place + 1 == len(forms) or (self._gives_probabilities and choice and not forms[place + 1].top):
                    raise
                place += 1
                continue
            if choice and form.top:
                self._gives_probabilities |= answer.probabilities is not None
                if answer.status == "failed" or (self._gives_probabilities and answer.probabilities is None):
                    # a yes or no among probabilities would be on another scale: it counts as no answer
                    if again == UNUSABLE_TRIES:
                        return failed(
                            query, answer.error or "no log-probabilities came with this answer, as with others"
                        )
                    again += 1
                    continue
            unread = choice and answer.probabilities is None and answer.text.strip() not in query.choices
            if unread and place + 1 < len(forms):
                place += 1
                continue
            # words where log-probabilities were to be had are this one answer's fault, and not the server's
            if place > self._form[choice] and not (unread and answer.logprob is not None):
                log.info("%s takes %s questions as %s", self._server.shown, "choice" if choice else "text", form)
                self._form[choice] = place
            return answer

    def _body(self, query: Query, messages: list[dict[str, Any]], form: Form) -> dict[str, Any]:
        return request_body(
            query,
            messages,
            form,
            model=self.served.name,
            seed=self._seed,
            pixel_bounds=self._bounds,
            length_field=self._length_field,
        )

    def _read(self, reply: Any, query: Query) -> Answer:
        answer = read_reply(reply, query)
        self._compare(reply.get("model"))
        details = (reply.get("usage") or {}).get("prompt_tokens_details")
        if isinstance(details, dict):
            self.cached_tokens += int(details.get("cached_tokens") or 0)
        return answer

    def _compare(self, named: object) -> None:
        """Compare the model that a reply names with the one before: a run mixes no models.

        Servers name a model in their own way (a version, a path), so the first name stands, and is only logged where
        it differs from the one that was asked for. Raises AnswerError for another one later.
        """
        if not isinstance(named, str) or not named:
            return
        if not self.answering:
            self.answering = named
            if self.served.name not in named and named not in self.served.name:
                log.warning(
                    "%s was asked for %s and names the model of its replies %s",
                    self._server.shown,
                    self.served.name,
                    named[:200],
                )
        elif named != self.answering:
            raise AnswerError(
                f"the reply is from the model {named[:200]!r}, those before it from {self.answering!r}",
                hint="Let the server keep to one model: a run mixes none.",
            )
