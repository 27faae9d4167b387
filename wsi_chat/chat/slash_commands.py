"""The commands of a conversation: ``/region 0 0 512 512`` and the like, read and checked."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_chat.asking.ask import as_region
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, Remark

ARGUMENTS = {"region": "x0 y0 x1 y1", "tile": "ID", "find": "CLASS", "save": "FILE"}
NAMES = ("region", "tile", "find", "slide", "why", "save", "help", "quit")


@dataclass(frozen=True, slots=True)
class Reading:
    """A command that was understood: its name, and its argument as text or as a region."""

    name: str
    text: str = ""
    region: Box | None = None


def read_command(line: str) -> Reading:
    """A line that begins with ``/``. Raises SettingError for an unknown command or a wrong argument."""
    name, _, rest = line.removeprefix("/").partition(" ")
    name, rest = name.casefold(), rest.strip()
    if name in ("exit", "q"):
        name = "quit"
    if name not in NAMES:
        raise SettingError(Remark("chat.no_command", name=name), hint=Remark("chat.help_lists"))
    if name in ARGUMENTS and not rest:
        raise SettingError(Remark("chat.needs", name=name, argument=ARGUMENTS[name]), hint=Remark("chat.help_lists"))
    if name == "region":
        return Reading(name, region=as_region(rest.replace(",", " ").split(), given_as="/region"))
    return Reading(name, rest)
