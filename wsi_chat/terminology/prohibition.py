"""What a report may not state of its own, as patterns that a sentence can be checked against."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Self

from pydantic import model_validator

from wsi_chat.schema import Record
from wsi_chat.terminology.fields import Code, Misfit, Text


class Prohibition(Record):
    """Something that no image of this specimen shows, and so no model's sentence may state.

    ``patterns`` are regular expressions, matched anywhere in a sentence without regard to case; ``\\b`` and ``\\w``
    know ASCII letters only, so that a Latin word is found inside Chinese text too. ``ancillary`` marks the result
    of another test, which may be stated where the user supplied it under this ``code``. ``example`` is a
    sentence that must be caught, ``allowed`` one that must not; both are checked when the file is read.
    """

    code: Code
    text: Text
    patterns: tuple[Text, ...]
    ancillary: bool = False
    example: Text
    allowed: Text | None = None
    source: Text

    @cached_property
    def _compiled(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern, re.IGNORECASE | re.ASCII) for pattern in self.patterns)

    def matches(self, text: str) -> bool:
        """Whether a sentence states what is prohibited."""
        return any(pattern.search(text) for pattern in self._compiled)

    @model_validator(mode="after")
    def _patterns_do_as_they_say(self) -> Self:
        if not self.patterns:
            raise Misfit("is empty", path="patterns", value=[], hint="Give at least one regular expression.")
        for n, pattern in enumerate(self.patterns):
            try:
                re.compile(pattern, re.IGNORECASE | re.ASCII)
            except re.error as error:
                raise Misfit(
                    f"is no regular expression ({error})",
                    path=f"patterns[{n}]",
                    value=pattern,
                    hint="Mend the expression; in YAML, single quotes keep backslashes as they are.",
                ) from error
        if not self.matches(self.example):
            raise Misfit(
                "is caught by none of the patterns", path="example", value=self.example, hint="Widen a pattern."
            )
        if self.allowed is not None and self.matches(self.allowed):
            raise Misfit("is caught by a pattern", path="allowed", value=self.allowed, hint="Narrow that pattern.")
        return self
