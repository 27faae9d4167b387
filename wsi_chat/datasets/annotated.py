"""What a builder of instruction data knows of one picture, whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi_chat.schema import LabelledBox

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Annotated:
    """One picture with its truth. Boxes are pixels of the picture, clipped to it.

    ``load`` gives the pixels (RGB). ``group`` is the patient or slide that must stay in one split. ``known`` are
    the classes annotated exhaustively here: only of these may it be said that there is none, or how many.
    ``unsure`` are classes of which the picture shows a part too small to count: nothing is asked about them.
    ``abnormal`` is what the source says of the picture as a whole, None where it says nothing. ``split`` is the
    split that the source itself assigns, or empty. ``mpp`` is µm/px.
    """

    name: str
    size: tuple[int, int]
    load: Callable[[], Image.Image] = field(compare=False)
    group: str
    boxes: tuple[LabelledBox, ...] = ()
    known: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()
    caption: str = ""
    questions: tuple[tuple[str, str], ...] = ()
    abnormal: bool | None = None
    mpp: float | None = None
    split: str = ""
    source: str = ""


class Renaming:
    """Class name as annotated -> label: names given by the user first, then the dialect's, else in lower case.

    Args:
        names: old -> new, as the user gives them.
        known_label: a dialect's label for a spelling, or empty.
    """

    def __init__(self, names: Mapping[str, str], known_label: Callable[[str], str]) -> None:
        self._names = {key.strip().casefold(): value for key, value in names.items()}
        self._known_label = known_label

    def __call__(self, name: str) -> str:
        plain = " ".join(name.split())
        return self.known(plain) or plain.casefold()

    def known(self, name: str) -> str:
        """The label of a name that the user or the dialect knows, else empty."""
        plain = " ".join(name.split())
        return self._names.get(plain.casefold()) or self._known_label(plain)

    def derived(self, parts: Sequence[str]) -> str:
        """The label of a class of several parts, base first: renamed as a whole, else the last part that is known.

        Where no part is known it is the base, of which the others are what was observed (``tumor: positive``).
        """
        return (
            self.known(": ".join(parts)) or next(filter(None, map(self.known, reversed(parts))), "") or self(parts[0])
        )
