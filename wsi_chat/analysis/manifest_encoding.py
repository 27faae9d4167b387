"""What an older encoding makes of a manifest: whether text is clearly Chinese, and how two readings differ.

Nearly every file in a Western encoding is valid GB18030 too: an accented letter and the letter after it are one rare
Chinese character there (``Léon``, ``L閛n``). Names and diagnoses must not be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from wsi_chat.errors import SettingError

_RUN = re.compile(rb"[\x80-\xff]+")
_CHARACTER = re.compile(rb"[\x81-\xfe][0-9][\x81-\xfe][0-9]|[\x81-\xfe][\x40-\x7e\x80-\xfe]")
_COMMON = re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]")
"""Punctuation, and the 3,755 common characters with which Chinese text is written for the most part (GB 2312 level 1);
an accented letter followed by a plain one is none of them, nor are Russian words in lower case."""
COMMON_SHARE = 0.5
LONGEST_LATIN_RUN = 2


def refuse_to_guess(name: str, data: bytes, others: Sequence[str]) -> None:
    """Raises SettingError where valid GB18030 may as well be in one of the others; the first of them is named.

    A file that is in no other encoding, or clearly Chinese, passes.
    """
    if not others or clearly_chinese(data):
        return
    line, chinese, other = _first_difference(data, "gb18030", others[0])
    raise SettingError(
        f"{name}, line {line}: not UTF-8 text, and the encoding cannot be told: {other!r} if it is {others[0]}, "
        f"{chinese!r} if it is gb18030.",
        hint="Save it as UTF-8 (in a spreadsheet: 'CSV UTF-8').",
    )


def clearly_chinese(data: bytes) -> bool:
    """Whether bytes that are valid GB18030 can hardly be anything else."""
    characters = _CHARACTER.findall(data)
    common = sum(_COMMON.fullmatch(each) is not None for each in characters)
    return common >= COMMON_SHARE * len(characters) and not _maybe_western(data)


def _maybe_western(data: bytes) -> bool:
    """Whether all that is not ASCII could be accented letters: one or two at a time, and no other signs."""
    runs = [run.decode("cp1252", errors="replace") for run in _RUN.findall(data)]
    return all(len(run) <= LONGEST_LATIN_RUN and run.isalpha() for run in runs)


def _first_difference(data: bytes, one: str, other: str) -> tuple[int, str, str]:
    """The line where two encodings first differ, and the word there in each. Raises UnicodeDecodeError."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        for word in re.split(rb"[,;|\t\r ]+", line):
            if word.isascii():
                continue
            texts = word.decode(one, errors="replace"), word.decode(other, errors="replace")
            if texts[0] != texts[1]:
                return number, *texts
    return 1, data.decode(one), data.decode(other)
