"""Text of unknown origin, shown so that it steers neither a terminal nor whoever reads a log: control characters become
symbols, e.g. ``␛`` for escape, and ``\\ufffd`` where there is none.

A line feed may be layout or part of a name: `visible` keeps it, `one_line` shows it, and `with_list` keeps those before
the indented lines of a list, which cannot pass for lines of ours.
"""

from __future__ import annotations

import re

# what a terminal acts on, or reads from right to left: C0 but for tab and line feed, DEL, C1, separators of lines and
# paragraphs, bidirectional controls
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# a line feed but for those before a list's own lines, which are indented as no result is
_BREAK = re.compile("\n(?!  (?!fix:))")


def visible(text: str) -> str:
    """The text with symbols for its control characters but tabs and line feeds."""

    def symbol(found: re.Match[str]) -> str:
        code = ord(found.group())
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"

    return CONTROLS.sub(symbol, text)


def one_line(text: str) -> str:
    """As `visible`, and a line feed is ``␊`` too: a name with one in it cannot pass for a line of ours."""
    return visible(text).replace("\n", "␊")


def with_list(text: str) -> str:
    """One line, or one and the indented lines of its list."""
    return visible(_BREAK.sub("␊", text))
