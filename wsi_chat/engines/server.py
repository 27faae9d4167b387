"""One server as seen over HTTP: is it there, which model does it have, and a request with its retries."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import json
import logging
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from wsi_chat.address import check_address, is_this_machine
from wsi_chat.engines.chat_requests import FIX_FOREIGN
from wsi_chat.engines.checkpoint import read_checkpoint
from wsi_chat.errors import AnswerError, EngineError, SettingError, whole_text
from wsi_chat.names import ELSEWHERE, without_folder

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
BUSY = frozenset({408, 425, 429, 503, 504, 524, 529})
NOT_ALLOWED = frozenset({401, 403})
LONGEST_PAUSE = 30.0
LONGEST_WISH = 300.0
"""A server that asks for a longer pause than this (seconds) gets none: the question counts as failed."""
CONNECT_SECONDS = 10.0
TIMEOUTS = 1
"""Retries after a timeout: each costs as long as the timeout itself."""


REPLY_BYTES = 8 * 2**20
SECRET_FROM = 8  # characters of a key; shorter ones, and EMPTY, are no secrets and may stand in any text
KEY = "[key]"  # stands in a reply where a server repeats the key that it was sent
"""Bytes of a reply that are read at most, unpacked: the longest answers with their log-probabilities have a tenth."""


KEY_HINT = "Put the server's key into the environment variable WSI_CHAT_API_KEY."


FIX_FAILED = "See the server's log, then run the same command again: only what has no answer is asked."
FIX_BUSY = "Lower --concurrency, then run the same command again: only what has no answer is asked."
FIX_SLOW = "Lower --concurrency, or raise timeout (WSI_CHAT_TIMEOUT)."
FIX_GONE = "Check that the server runs, and --base-url."


class ServerTrouble(Exception):
    """What passed at no retry. ``gone``: nobody answers at the address at all. ``fix``: the way out."""

    def __init__(self, message: str, *, gone: bool = False, fix: str = FIX_FAILED) -> None:
        super().__init__(message)
        self.gone = gone
        self.fix = fix


class Refused(Exception):
    """The server says that this request cannot be answered as it is (a 4xx). ``fix``: the way out."""

    fix = "See the server's log, or name another model with --model."


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the server lists it. ``id`` is part of every query's key; ``root`` a folder here, or None.

    ``max_model_len``: tokens of a question and its answer together, None where the server does not say.
    """

    name: str
    id: str
    root: Path | None
    max_model_len: int | None = None


async def open_server(
    base_url: str, *, key: str, timeout: float, retries: int, pause: float, key_hint: str = KEY_HINT
) -> Server:
    """A connection to a server; nothing is sent yet. Raises SettingError for an unusable address.

    ``key_hint`` is the way out where the server refuses the key.
    """
    import httpx2

    address = check_address(base_url)
    here = is_this_machine(address)
    client = httpx2.AsyncClient(
        base_url=address + "/",
        headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        timeout=httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        # a proxy of the environment would carry the images off this machine
        trust_env=not here,
    )
    return Server(client, address, key=key, timeout=timeout, retries=retries, pause=pause, key_hint=key_hint)


class Server:
    """Sends requests and repeats those that may yet succeed.

    ``address`` is where it sends them; messages name it as ``shown``, without a path that may be a key, or, where
    many may come, as ``host``, with the port. Neither that
    path nor the key that it sends shows in a reply that it gives back. A request and its reply together take
    ``timeout`` seconds at most, however slowly the server sends, and a reply `REPLY_BYTES`.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        address: str,
        *,
        key: str,
        timeout: float,
        retries: int,
        pause: float,
        key_hint: str = KEY_HINT,
    ) -> None:
        self._client = client
        self._key_hint = key_hint
        path = urlsplit(address).path
        self.address = address
        self.shown = without_folder(address)
        self.host = urlsplit(address).netloc.rpartition("@")[2]
        self._key = key if len(key) >= SECRET_FROM else ""
        secrets = {self._key: KEY, path if self.shown != address and len(path) >= SECRET_FROM else "": f"/{ELSEWHERE}"}
        self._secrets = {secret: shown for secret, shown in secrets.items() if secret}
        self._timeout = timeout
        self._retries = retries
        self._pause = pause
        self._chance = random.Random()

    async def close(self) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """What ``read`` makes of the reply's JSON; an AnswerError of it is retried like a reply cut short.

        Raises:
            Refused: a 4xx that no retry will change.
            ServerTrouble: every try failed.
            EngineError: the key or the model is refused: no question will fare better.
        """
        return await self._tried("POST", path, body, read)

    async def get(self, path: str, read: Callable[[Any], T]) -> T:
        """As `post`, for something to look up."""
        return await self._tried("GET", path, None, read)

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Any]:
        """The JSON of each event of a streamed reply; asked once, since half of it may have been passed on.

        Raises as `post` does.
        """
        import httpx2

        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", path, json=dict(body)) as response,
            ):
                if not response.is_success:
                    raise self._unwelcome(response, self._without_secrets(await _content(response)))
                async for sent in _lines(response):
                    line = sent
                    for secret, shown in self._secrets.items():
                        line = line.replace(secret, shown)
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if data == "[DONE]":
                        return
                    if data:
                        yield json.loads(data)
        except TimeoutError as error:
            raise ServerTrouble(f"its stream took longer than {self._timeout:g} s", fix=FIX_SLOW) from error
        except AnswerError as error:
            raise ServerTrouble(error.message, fix=error.hint or FIX_FAILED) from error
        except httpx2.TransportError as error:
            raise ServerTrouble(
                f"{type(error).__name__}: {error}", gone=isinstance(error, httpx2.ConnectError), fix=FIX_GONE
            ) from error
        except (ValueError, RecursionError) as error:
            raise ServerTrouble(f"its stream is not JSON: {error}", fix=FIX_FOREIGN) from error

    def _without_secrets(self, content: bytes) -> bytes:
        """A reply without our key, which some servers repeat in their complaints, and logs and reports would keep."""
        for secret, shown in self._secrets.items():
            content = content.replace(secret.encode(), shown.encode())
        return content

    def _unwelcome(self, response: httpx2.Response, content: bytes) -> Exception:
        """The error that a reply with an error's status stands for."""
        trouble = f"HTTP {response.status_code}: {_complaint(content) or response.reason_phrase}"
        if response.status_code in NOT_ALLOWED:
            return EngineError(f"{self.shown} refuses the key ({trouble})", hint=self._key_hint)
        if response.status_code in RETRIED:
            return ServerTrouble(trouble, fix=FIX_BUSY if response.status_code in BUSY else FIX_FAILED)
        return Refused(trouble)

    async def _tried(self, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T]) -> T:
        import httpx2

        timeouts = 0
        attempt = 0
        while True:
            wish: float | None = None
            gone = False
            try:
                async with (
                    asyncio.timeout(self._timeout),
                    self._client.stream(method, path, json=body) as response,
                ):
                    content = self._without_secrets(await _content(response))
                if response.is_success:
                    return read(json.loads(content))
                unwelcome = self._unwelcome(response, content)
                if not isinstance(unwelcome, ServerTrouble):
                    raise unwelcome
                trouble, fix = str(unwelcome), unwelcome.fix
                wish = _wished_pause(response.headers.get("retry-after"))
            except (httpx2.TimeoutException, TimeoutError) as error:
                timeouts += 1
                gone = isinstance(error, httpx2.ConnectTimeout)
                trouble, fix = f"no answer in time ({type(error).__name__})", FIX_GONE if gone else FIX_SLOW
            except httpx2.TransportError as error:
                gone = isinstance(error, httpx2.ConnectError)
                trouble, fix = f"{type(error).__name__}: {error}".rstrip(": "), FIX_GONE
            except (AnswerError, ValueError, RecursionError) as error:  # the last two: the body is not JSON
                trouble, fix = f"its reply is not JSON: {error}", FIX_FOREIGN
                if isinstance(error, AnswerError):
                    trouble, fix = error.message, error.hint or FIX_FAILED
            if attempt >= self._retries or timeouts > TIMEOUTS:
                raise ServerTrouble(trouble, gone=gone, fix=fix)
            pause = min(LONGEST_PAUSE, self._pause * 2**attempt) * self._chance.uniform(0.5, 1.5)
            if wish is not None:
                if wish > LONGEST_WISH:
                    raise ServerTrouble(f"{trouble} (asks to wait {wish:.0f} s)", fix=fix)
                # a little later than asked, each at its own time, or all come back at once
                pause = wish + pause * 0.1
            log.info("%s: %s; trying again in %.1f s", self.shown, trouble, pause)
            await asyncio.sleep(pause)
            attempt += 1


async def _content(response: httpx2.Response) -> bytes:
    """A reply's body, unpacked. Raises AnswerError where it is larger than `REPLY_BYTES` or cannot be unpacked."""
    content = bytearray()
    async for part in response.aiter_raw():
        content += part
        if len(content) > REPLY_BYTES:
            raise _too_large()
    packing = response.headers.get("content-encoding", "").strip().lower()
    if packing in ("", "identity"):
        return bytes(content)
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise AnswerError(f"its reply is packed as {packing!r}, which it was not asked for")
    try:
        unpacked = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(bytes(content), REPLY_BYTES + 1)
    except zlib.error as error:
        raise AnswerError(f"its reply cannot be unpacked: {error}") from error
    if len(unpacked) > REPLY_BYTES:
        raise _too_large()
    return unpacked


async def _lines(response: httpx2.Response) -> AsyncIterator[str]:
    """The lines of a streamed reply as they come. Raises AnswerError where they are more than `REPLY_BYTES`."""
    rest, total = b"", 0
    async for part in response.aiter_bytes():
        total += len(part)
        if total > REPLY_BYTES:
            raise _too_large()
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")


def _too_large() -> AnswerError:
    return AnswerError(f"its reply is larger than {REPLY_BYTES // 2**20} MiB")


def _complaint(content: bytes) -> str:
    """What the server says went wrong, on one line."""
    text = content.decode("utf-8", "replace")
    try:
        reply = json.loads(text)
        inner = reply.get("error", reply) if isinstance(reply, dict) else reply
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (ValueError, RecursionError):
        pass
    return " ".join(text[:3000].split())[:300]


def _wished_pause(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date; None where it says nothing readable."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


async def find_model(server: Server, wanted: str | None, *, patience: float) -> ServedModel:
    """The model to ask, from the server's list.

    Args:
        wanted: its name; None takes the only one.
        patience: seconds to wait for a server that does not answer yet.

    Raises:
        EngineError: no server answers at the address.
        SettingError: the model is not there, or there are several and none was named.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            listed = await server.get("models", _listed)
            break
        except Refused as refused:
            if wanted is None:
                raise SettingError(
                    f"{server.shown} lists no models ({refused})", hint="Name the model with --model."
                ) from refused
            listed = {wanted: ("", None)}  # some servers keep no list
            break
        except ServerTrouble as trouble:
            if time.monotonic() >= deadline:
                raise EngineError(
                    f"no server answers at {server.shown}: {trouble}",
                    hint="Start one (wsi-chat serve-command prints how), or correct --base-url.",
                ) from trouble
    if wanted is None and len(listed) == 1:
        wanted = next(iter(listed))
    if wanted is None or wanted not in listed:
        asked = "no model was named" if wanted is None else f"there is no model {wanted!r}"
        raise SettingError(f"{asked}; {server.shown} has: {', '.join(listed) or 'none'}", hint="Name one with --model.")
    origin, longest = listed[wanted]
    root = _folder(origin)
    if root is None:
        return ServedModel(wanted, f"{wanted}@{_identity(server)}", None, longest)
    return ServedModel(wanted, f"{wanted}@{read_checkpoint(root).revision}:served", root, longest)


def _identity(server: Server) -> str:
    """What tells one server from another in keys and reports; of a path that is not shown a hash."""
    if server.shown == server.address:
        return server.address
    return f"{server.shown} {hashlib.sha256(server.address.encode()).hexdigest()[:12]}"


def _listed(reply: Any) -> dict[str, tuple[str, int | None]]:
    """Name -> where the server loaded it from (empty where it does not say), its context in tokens (None likewise).

    Raises AnswerError.
    """
    try:
        models = {
            whole_text(str(entry["id"])): (str(entry.get("root") or ""), entry.get("max_model_len"))
            for entry in reply["data"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise AnswerError(f"its reply is not a list of models: {error}") from error
    return {name: (root, most if isinstance(most, int) and most > 0 else None) for name, (root, most) in models.items()}


def _folder(root: str) -> Path | None:
    """The checkpoint's folder where it lies on this machine too."""
    with contextlib.suppress(OSError, EngineError):
        folder = Path(root)
        if root and folder.is_absolute() and read_checkpoint(folder):
            return folder
    return None
