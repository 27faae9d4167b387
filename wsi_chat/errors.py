"""The tree of errors. Each names the file or setting, the value seen, and the way out.

WsiChatError
├── SettingError        a flag, a config key or an environment variable is wrong        exit 2
│   └── DocumentError       a YAML or JSON file is missing, damaged, too large or too deep
├── SlideError          the slide as a file
│   ├── SlideNotFound       no such file, or a folder                                    exit 2
│   ├── SlideUnsupported    no reader opens it                                           exit 1
│   ├── SlideUnreadable     opens, but its pixels cannot be read                         exit 1
│   └── ResolutionUnknown   no plausible micrometres per pixel                           exit 2
├── OutputError         the run folder cannot be written, or holds another slide's run   exit 1
├── EngineError         the model cannot be loaded, or died                              exit 1
│   └── EngineDied          it died after its restart; what was answered is kept         exit 3
├── AnswerError         an answer that cannot be used (recorded, never raised over a run)
└── TerminologyError    a reporting system's file is wrong                               exit 2
"""

from __future__ import annotations

from pathlib import Path

OWN = ("wsi_chat.", "tilers.", "aggregators.", "reports.")


STOPS = (".", "!", "?", ":", ";", "。", "！", "？", "：", "；")
"""What ends a sentence, or leads on to the next."""


def as_utf8(text: str) -> str:
    """Text that can be written anywhere: the bytes of a file name that is not UTF-8 are shown as ``\\xe9``."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def unforeseen(error: BaseException) -> str:
    """An exception that nobody raised on purpose: its type, its message, and the module of ours that it came through.

    The message alone may say nothing: that of a KeyError is the key, that of an assertion may be empty.
    """
    said = as_utf8(" ".join(str(error).split())[:500])
    place, trace = "", error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        place = module if module.startswith(OWN) else place
        trace = trace.tb_next
    return f"an unexpected {type(error).__name__}{f' in {place}' if place else ''}: {said or 'it says no more'}"


def whole_text(text: str) -> str:
    """What was said as text that can be written anywhere: pairs of surrogates are joined, a lone one is U+FFFD.

    A server's JSON may hold half a pair (``"\\ud83d"``), a streamed character may come in two halves, and a terminal
    may give bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class WsiChatError(Exception):
    """Base of every error that wsi-chat raises on purpose.

    Args:
        message: what is wrong, naming the file or setting and the value seen.
        hint: the way out, one imperative sentence.

    Attributes:
        said: both as they were given: a `Remark` among them can be put into another language.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.said = (message, hint)
        self.message = as_utf8(message)
        self.hint = as_utf8(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        stop = "" if self.message.endswith(STOPS) or not self.message else "."
        return f"{self.message}{stop} {self.hint}".lstrip()


class SettingError(WsiChatError):
    """A flag, environment variable or configuration key has a value that cannot be used."""

    exit_code = 2


class DocumentError(SettingError):
    """A YAML or JSON file that cannot be read within bounds.

    Args:
        source: the file, or a name for a text that is none.
        reason: what is wrong, as the rest of a sentence that begins with the file's name.
        line: where, counted from 1; 0 where that is not known.
        missing: there is no such file.
    """

    def __init__(
        self, source: Path | str, reason: str, *, line: int = 0, missing: bool = False, hint: str = "Correct the file."
    ) -> None:
        super().__init__(f"{source}{f', line {line},' if line else ''} {reason}.", hint=hint)
        self.source = source
        self.reason = reason
        self.line = line
        self.missing = missing


class SlideError(WsiChatError):
    """Something about the slide file."""


class SlideNotFound(SlideError):
    """There is no such file, or it is a folder that is not a slide."""

    exit_code = 2


class SlideUnsupported(SlideError):
    """No registered reader opens the file."""


class SlideUnreadable(SlideError):
    """The file opens, but pixels cannot be read from it."""


class ResolutionUnknown(SlideError):
    """The slide gives no plausible micrometres per pixel and none was supplied."""

    exit_code = 2


class OutputError(WsiChatError):
    """The run folder cannot be written."""


class EngineError(WsiChatError):
    """The model cannot be loaded or asked."""


class EngineDied(EngineError):
    """The engine died and its one restart failed too; every answer so far is in the journal."""

    exit_code = 3


class AnswerError(WsiChatError):
    """An answer that cannot be used; the pipeline records it and goes on."""


class TerminologyError(WsiChatError):
    """A reporting system's file does not validate."""

    exit_code = 2
