"""The address of a server: its full form, whether it is this machine, and that no password or key hides in it."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import SplitResult, urlsplit, urlunsplit

from wsi_chat.errors import SettingError
from wsi_chat.names import ELSEWHERE

EXAMPLE = "Give it as in http://127.0.0.1:8000/v1."
_START = re.compile(r"(?:[^/]*://)?[^/]*")
OWN_KEY, OPENAI_KEY = "WSI_CHAT_API_KEY", "OPENAI_API_KEY"
OPENAI = "https://api.openai.com"
KEY_HINT = f"Leave it out; the server's key is read from the environment variable {OWN_KEY}."


def check_address(base_url: str) -> str:
    """The address in its full form, with ``/v1`` where no path is given.

    Raises:
        SettingError: it cannot be used, or holds a name, a password or anything after ``?`` or ``#``, where keys are
            put: an address is written into reports and logs. What may be secret is not repeated.
    """
    try:
        parts = urlsplit(base_url.strip() if "://" in base_url else f"http://{base_url.strip()}")
        port = parts.port
    except ValueError as error:
        if "@" in base_url or "?" in base_url or "#" in base_url:
            raise SettingError("--base-url is not an address", hint=EXAMPLE) from None
        raise SettingError(f"--base-url {_without_path(base_url)!r}: {error}", hint=EXAMPLE) from error
    if parts.username or parts.password:
        raise SettingError(f"--base-url {_shown(parts, port)} comes with a name or a password in it", hint=KEY_HINT)
    if parts.query or parts.fragment:
        raise SettingError(f"--base-url {_shown(parts, port)} goes on after its path with ? or #", hint=KEY_HINT)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(f"--base-url is {_without_path(base_url)!r}", hint=EXAMPLE)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", ""))


def _shown(parts: SplitResult, port: int | None) -> str:
    """An address without what may be secret in it."""
    return f"{parts.scheme}://{parts.hostname or ''}" + (f":{port}" if port else "")


def _without_path(address: str) -> str:
    """What is no address as far as a path may begin, which may be a key."""
    address = address.strip()
    start = _START.match(address)
    place = start.group() if start else ""
    return address if address.rstrip("/") in (place.rstrip("/"), f"{place}/v1") else f"{place}/{ELSEWHERE}"


def is_this_machine(base_url: str) -> bool:
    """Whether the address leads to this very machine (by its name or a loopback address); no name is looked up."""
    host = (urlsplit(base_url).hostname or "").rstrip(".").lower()
    if host in ("localhost", socket.gethostname().lower()) or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def is_openai(base_url: str) -> bool:
    """Whether the address is OpenAI's own, encrypted: the one place to which OPENAI_API_KEY is sent."""
    parts = urlsplit(check_address(base_url))
    return f"{parts.scheme}://{parts.hostname}" == OPENAI and parts.port in (None, 443)


def notice(base_url: str) -> str:
    """What the user must know before images leave this machine for that address; empty where they stay."""
    address = check_address(base_url)
    if is_this_machine(address):
        return ""
    how = " unencrypted" if address.startswith("http:") else ""
    return f"Images of the slide are sent{how} to {urlsplit(address).netloc}, which is not this machine."
