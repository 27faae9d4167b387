"""What a slide is called in documents, and what must not show in them: places of files, the home, real names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from wsi_chat.errors import as_utf8

ELSEWHERE = "..."  # stands for a folder


@dataclass(frozen=True, slots=True)
class Names:
    """Attributes:
    slide: the file name that documents show.
    fields: photograph's file name -> the name that documents show; empty where they keep their own.
    hidden: (text, what stands in its place), the longest first; see `hiding`.
    """

    slide: str
    fields: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[tuple[str, str], ...] = ()

    def field(self, name: str) -> str:
        """The name that documents show for a photograph."""
        return self.fields.get(name, name)

    def hide(self, text: str) -> str:
        """A message without what must not show; a name within a longer word stays, and so does what was put in."""
        found = {real: shown for real, shown in self.hidden if real in text}
        if not found:
            return text
        # a pseudonym that the message holds already may itself contain a name: slide-1a2b, of a file called slide.svs
        found |= {shown: shown for _, shown in self.hidden if shown in text and shown not in found}
        either = "|".join(map(re.escape, sorted(found, key=lambda text: (-len(text), text))))
        return re.sub(rf"(?<!\w)(?:{either})(?!\w)", lambda match: found[match.group()], text)


def hiding(replaced: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What `Names.hidden` holds for these texts, also as they are written where a name is not UTF-8."""
    every = {as_utf8(real): shown for real, shown in replaced.items() if len(real) > 1} | {
        real: shown for real, shown in replaced.items() if len(real) > 1
    }
    return tuple(sorted(every.items(), key=lambda pair: (-len(pair[0]), pair)))


def places(files: Iterable[Path]) -> dict[str, str]:
    """Every way in which the folders of files, this account's home and the working folder may be written."""
    found = {str(folder): ELSEWHERE for file in files for folder in (file.absolute().parent, file.resolve().parent)}
    found[str(Path.cwd())] = ELSEWHERE
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    return found | ({home: "~"} if home != "~" else {})


def from_home(path: str | os.PathLike[str]) -> Path:
    """A path whose ``~`` stands for a home; of an account that is not there, ``~name`` is a name like any other."""
    given = path if isinstance(path, Path) else Path(path)
    try:
        return given.expanduser()
    except RuntimeError:
        return given


def shown_names(path: Path, shown: str) -> Names:
    """A slide under the name that its report shows, wherever it is now."""
    real = {path.name: shown, str(path): shown, str(path.resolve()): shown} if shown != path.name else {}
    return Names(shown, hidden=hiding(places([path]) | real))


def without_folder(value: str) -> str:
    """A setting's value as documents show it: of a path the last part alone, of an address no path, else as it is.

    Some gateways have a key in the path of their address; the usual ``/v1`` is none.
    """
    if "://" in value:
        address = urlsplit(value)
        plain = address.path.strip("/") in ("", "v1")
        return value if plain else f"{address.scheme}://{address.netloc}/{ELSEWHERE}"
    return Path(value).name if is_path(value) else value


def is_path(value: str) -> bool:
    """Whether a setting's value names a file or folder beyond the working folder."""
    path = from_home(value)
    return path.is_absolute() or (len(path.parts) > 1 and os.path.lexists(path))
