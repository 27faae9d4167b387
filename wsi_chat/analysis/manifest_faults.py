"""All that is wrong with a manifest in one error, so that it need not be corrected one line a try."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from wsi_chat.errors import SettingError

T = TypeVar("T")
SHOWN = 10
"""Faults that the error lists; of the rest it gives the number."""


class Faults:
    """Collects what is wrong with the lines of one manifest; `settle` raises it.

    Args:
        name: of the manifest, with which the message of every fault begins.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: list[tuple[int, SettingError]] = []

    def add(self, line: int, error: SettingError) -> None:
        """Note a fault of a line."""
        self._found.append((line, error))

    def noting(self, line: int, make: Callable[[], T]) -> T | None:
        """What ``make`` gives; None where it raises, which is noted."""
        try:
            return make()
        except SettingError as error:
            self.add(line, error)
            return None

    def settle(self) -> None:
        """Raise what was noted, in the order of the lines: one fault as it is, several as one error."""
        if not self._found:
            return
        found = [error for _, error in sorted(self._found, key=lambda fault: fault[0])]
        if len(found) == 1:
            raise found[0]
        # each is one line of the list, whatever a name in it holds
        told = [error.message.removeprefix(f"{self._name}, ").replace("\n", "␊") for error in found[:SHOWN]]
        listed = [f"  {message}" for message in told]
        if len(found) > SHOWN:
            listed.append(f"  and {len(found) - SHOWN} more.")
        hints = dict.fromkeys(error.hint for error in found[:SHOWN] if error.hint)
        raise SettingError(
            "\n".join([f"{self._name} has {len(found)} faults:", *listed]), hint=" ".join(hints)
        ) from found[0]
