"""The stores behind addresses, through fsspec: which package reads a protocol, time limits, and when a file changed."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from wsi_chat.errors import SlideUnsupported

HTTP = ("http", "https")
CONNECT_S, READ_S = 20.0, 60.0  # how long a server may take to be reached, and to send the next part of an answer
COPY = "Copy the slide to this machine."


def file_system(scheme: str) -> Any:
    """The fsspec file system of a protocol.

    Raises:
        SlideUnsupported: its package is not installed, or it cannot be set up.
    """
    try:
        import fsspec

        wanted = options(scheme)
        unsaid = _without_answer(fsspec.get_filesystem_class(scheme), {**fsspec.config.conf.get(scheme, {}), **wanted})
        if unsaid:
            raise SlideUnsupported(
                f"{scheme}:// cannot be read: fsspec must be told {', '.join(unsaid)} beside the address.",
                hint=f"Set FSSPEC_{scheme.upper()}_{unsaid[0].upper()}, or copy the slide to this machine.",
            )
        return fsspec.filesystem(scheme, **wanted)
    except ImportError as error:
        raise missing_package(scheme, error) from error
    except ValueError as error:
        raise SlideUnsupported(f"{scheme}:// cannot be read: {error}.", hint=COPY) from error


def _without_answer(store: Any, given: Mapping[str, Any]) -> list[str]:
    """What a store must be told and is not. Asked before it is made: one half made complains on stderr when it goes."""
    return [
        name
        for name, parameter in list(inspect.signature(store.__init__).parameters.items())[1:]
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in given
    ]


def options(scheme: str) -> dict[str, Any]:
    """Time limits, where the user's own configuration of fsspec says nothing of the client."""
    from fsspec.config import conf

    if scheme in HTTP and "client_kwargs" not in conf.get(scheme, {}):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        return {"client_kwargs": {"timeout": limits, "trust_env": True}}
    if scheme in ("s3", "s3a") and "config_kwargs" not in conf.get("s3", {}):
        return {"config_kwargs": {"connect_timeout": CONNECT_S, "read_timeout": READ_S}}
    return {}


# what a client calls an error of the network -> what happened; of a kind and its parents the nearest one holds
BROKEN: Mapping[str, str] = {
    "ClientConnectorDNSError": "no server of that name was found",
    "ClientConnectorCertificateError": "the certificate of its server is not trusted on this machine",
    "ClientSSLError": "its server made no secure connection",
    "ClientProxyConnectionError": "the proxy cannot be reached",
    "ClientConnectorError": "its server cannot be reached",
    "EndpointConnectionError": "its server cannot be reached",
    "ServerDisconnectedError": "the connection broke off",
    "ClientPayloadError": "the connection broke off",
    "ClientConnectionError": "the connection broke off",
}


def network_trouble(error: Exception) -> str:
    """What happened to the connection, as the end of a sentence; empty where the error is of another kind."""
    said = next((BROKEN[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in BROKEN), "")
    if said == BROKEN["ClientConnectorError"] and isinstance(number := getattr(error, "errno", None), int):
        return f"{said} ({os.strerror(number).lower()})"
    return said


def missing_package(scheme: str, error: ImportError) -> SlideUnsupported:
    """What to say of a protocol whose package is not there, with the cure."""
    from fsspec.registry import known_implementations

    said = str(known_implementations.get(scheme, {}).get("err", error))
    if scheme in (*HTTP, "s3", "s3a"):
        return SlideUnsupported(
            f"{scheme}:// needs a package that is not installed ({error}).", hint="pip install 'wsi-chat[remote]'"
        )
    return SlideUnsupported(f"{scheme}:// needs a package that is not installed ({error}).", hint=said)


def changed_ns(info: dict[str, Any]) -> int:
    """When a file changed, in ns; where a store gives no time, a number that its checksum determines."""
    for name in ("mtime", "LastModified", "last_modified", "last-modified", "updated", "created"):
        value = info.get(name)
        try:
            if isinstance(value, datetime):
                return int(value.timestamp() * 1e9)
            if isinstance(value, int | float):
                return int(value * 1e9)
            if isinstance(value, str):
                return int(_date(value).timestamp() * 1e9)
        except (ValueError, TypeError, OverflowError):
            continue
    tag = str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "")
    return int.from_bytes(hashlib.sha256(tag.encode()).digest()[:7], "big") if tag else 0


def _date(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return parsedate_to_datetime(text)
