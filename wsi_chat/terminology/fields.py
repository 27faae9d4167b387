"""Types of the fields that reporting systems are made of, and the error that says which field does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Channel = Annotated[int, Field(ge=0, le=255)]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Axis = Literal["squamous", "glandular", "organism", "benign", "blood", "general", "generic"]
CategoryAxis = Literal["negative", "squamous", "glandular", "other", "general"]


class Misfit(ValueError):
    """A value that does not fit the rest of its file: where it stands, what it is, and the way out.

    Args:
        path: of the value, from the record that is validated: ``categories[2].from_labels[0]``.
        value: as the file has it.
    """

    def __init__(self, message: str, *, path: str, value: object, hint: str) -> None:
        super().__init__(message)
        self.path, self.value, self.hint = path, value, hint


def repeated(values: Iterable[str]) -> list[str]:
    """The values that come more than once, each once, in their first order."""
    return [value for value, n in Counter(values).items() if n > 1]
