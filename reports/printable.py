"""Text of files, users and models as a page prints it: one line, printable, of bounded length."""

from __future__ import annotations

import re
import unicodedata
from itertools import accumulate


def clean(text: object, limit: int | None = None) -> str:
    """Printable text on one line; control characters and lone surrogates become U+FFFD, long text loses its middle.

    ``limit`` counts columns: East Asian wide characters take two, the widest Latin letters one and a half.
    """
    # Not str.split(): that would also turn the no-break spaces of numbers into ordinary ones.
    line = re.sub(r"[ \t\r\n\f\v]+", " ", str(text)).strip()
    line = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Cn", "Co") else c for c in line)
    if limit is None or sum(map(_columns, line)) <= limit:
        return line
    head = _kept(line, limit * 2 // 3)
    tail = _kept(line[::-1], limit // 3 - 1)[::-1]
    return f"{head}…{tail}"


_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")


def sentences(text: object, limit: int, more: str) -> str:
    """The text whole, or its first sentences that fit, and behind them ``more``: where the rest is to be read.

    A first sentence that is longer than the limit ends behind a word, with an ellipsis.
    """
    line = clean(text)
    if sum(map(_columns, line)) <= limit:
        return line
    ends = [found.start() for found in _ENDS.finditer(line)]
    fitting = [end for end in ends if sum(map(_columns, line[:end])) <= limit]
    if fitting:
        return f"{line[: fitting[-1]]} {more}"
    head = _kept(line, limit)
    return f"{head.rsplit(' ', 1)[0] if ' ' in head else head}… {more}"


def _kept(line: str, limit: int) -> str:
    """The start of the line, up to this many columns."""
    ends = accumulate(map(_columns, line))
    return line[: next((i for i, end in enumerate(ends) if end > limit), len(line))]


def _columns(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return 2.0
    return 1.5 if character in "WMm@%" else 1.0


def shortened(text: str, limit: int = 30) -> str:
    """As many of the listed ranges as fit, then an ellipsis."""
    if len(text) <= limit:
        return text
    shown = text[:limit].rsplit(", ", 1)[0]
    return f"{shown}, …"
