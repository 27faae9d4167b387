"""What a builder of instruction data knows of one picture, whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    split that the source itself assigns, or empty. ``mpp`` is um/px.
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


Rename = Callable[[str], str]
"""Class name as annotated -> label."""


def renaming(names: Mapping[str, str], known_label: Callable[[str], str]) -> Rename:
    """Names given by the user first, then the dialect's spellings, else the name in lower case."""
    folded = {key.strip().casefold(): value for key, value in names.items()}

    def rename(name: str) -> str:
        plain = " ".join(name.split())
        return folded.get(plain.casefold()) or known_label(plain) or plain.casefold()

    return rename
