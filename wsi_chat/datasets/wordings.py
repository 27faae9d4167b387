"""The words of instruction data: several ways to ask each thing, and true answers made from annotations.

The first way of each task is the dialect's own prompt; those here are the others. Answers only say what the
annotations of the picture support.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from wsi_chat.schema import Box, LabelledBox
from wsi_chat.terminology import Label, System

GROUND = (
    "Where are the {plural}? Give the box of each.",
    "Find every {name} in this image.",
    "Detect all {name} cells and mark each with a box.",
)
REFER = ("What is in this region?", "Which class does the marked region belong to?", "Name the cell in the region.")
REGION = ("Is the cell in this region abnormal?", "Does this region show an abnormal cell?")
REGION_TEXT = ("Describe the region.", "What does this region show?", "Explain what is seen in the marked area.")
DESCRIBE = (
    "What would the report say of this field?",
    "Summarise the cytological finding in one sentence.",
    "State the diagnosis for this field.",
)
NARRATIVE = (
    "Please describe the image in detail.",
    "Give a detailed description of this field: which cells, how many, and where.",
    "Describe everything that is marked in this field, with numbers and places.",
)
ANY_ABNORMAL = (
    "Were any abnormal cells found during the examination?",
    "Does this field show abnormal cells?",
    "Is there anything abnormal here?",
)
BACKGROUND = (
    "What cells are present in the background of smears?",
    "Which normal cells are seen?",
    "Name the background cells of this field.",
)
HOW_MANY = ("How many {plural} are seen?", "Count the {plural}.", "What is the number of {plural} in this field?")
PRESENT = ("Is any {name} present?", "Does the field show {name}?", "Can {name} be seen here?")
WHICH = ("Which class has the most cells here?", "What is the most frequent class in this field?")
PHRASE = "Answer the question with a single phrase."
CATEGORY_TOPIC = ("Which category fits the image?", "What is the most severe category in this field?")
REGION_TOPIC = ("Which class is present in the image?", "What is marked in this field?")

BENIGN = ("superficial", "intermediate", "parabasal", "metaplastic", "endocervical", "neutrophil")
"""Normal cells of cervical preparations: annotated by the renderer and by labs, named by no category."""

_ROWS = ("upper", "middle", "lower")
_COLUMNS = ("left", "centre", "right")


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def place(box: Box, size: tuple[int, int]) -> str:
    """Which ninth of the picture the box's centre lies in: ``upper left`` ... ``centre`` ... ``lower right``."""
    x, y = box.center
    column = _COLUMNS[min(2, int(3 * x / size[0]))]
    row = _ROWS[min(2, int(3 * y / size[1]))]
    return "centre" if (row, column) == ("middle", "centre") else f"{row} {column}"


class Names:
    """What a reporting system calls a class; for one it does not have, the class's own name.

    ``benign`` names more classes that the system does not have and that are known to be harmless. A class that
    is neither the system's nor benign may be anything: a picture that shows one is not called normal.
    """

    def __init__(self, system: System, *, benign: Iterable[str] = ()) -> None:
        self.system = system
        self.benign = frozenset((*BENIGN, *benign))
        self._labels: dict[str, Label] = {label.code: label for label in system.labels}

    def short(self, code: str) -> str:
        return self._labels[code].name if code in self._labels else code

    def long(self, code: str) -> str:
        return self._labels[code].long_name if code in self._labels else f"{code} cell"

    def plural(self, code: str) -> str:
        return self._labels[code].plural if code in self._labels else f"{code} cells"

    def counted(self, code: str, number: int) -> str:
        """``no white blood cells``, ``1 white blood cell``, ``3 white blood cells``."""
        if number == 1:
            return f"1 {self._singular(code)}"
        return f"{number or 'no'} {self.plural(code)}"

    def _singular(self, code: str) -> str:
        plural = self.plural(code)
        return plural[:-1] if plural.endswith("s") else plural

    def abnormal(self, code: str) -> bool:
        """Whether the system counts the class as abnormal; a class it does not have is not."""
        return code in self._labels and self._labels[code].abnormal

    @property
    def abnormal_codes(self) -> frozenset[str]:
        """The abnormal classes that the system asks for by name; the unnamed one where it has no other."""
        every = [label for label in self.system.labels if label.abnormal]
        named = [label for label in every if label.axis != "generic"]
        return frozenset(label.code for label in named or every)

    def kind(self, code: str) -> str:
        """The system's axis of a class, ``background`` for a benign one it does not have, else ``unknown``."""
        if code in self._labels:
            return self._labels[code].axis
        return "background" if code in self.benign else "unknown"

    def worst(self, codes: Sequence[str]) -> str | None:
        """The gravest abnormal class; None where there is none, or where two axes cannot be compared."""
        graver = [code for code in codes if self.abnormal(code)]
        if not graver or len({self.kind(code) for code in graver}) > 1:
            return None
        return max(graver, key=self.system.severity)

    def category(self, code: str) -> str | None:
        """The name of the gravest category that the class supports."""
        fitting = [c for c in self.system.categories if code in c.from_labels]
        return max(fitting, key=lambda c: c.order).name if fitting else None

    @property
    def negative(self) -> tuple[str, str] | None:
        """Name and long name of the negative category, if the system has one."""
        if self.system.negative_category is None:
            return None
        category = self.system.category(self.system.negative_category)
        return category.name, category.long_name


def sentence(names: Names, boxes: Sequence[LabelledBox], *, normal: bool | None, bare: bool = False) -> str:
    """One report sentence; ``normal`` is None where it is not known whether the field is. Empty: nothing to say.

    ``bare``: normal cells were annotated too, so that a field without a box has no cells.
    """
    counts = Counter(found.label for found in boxes)
    abnormal = [code for code in counts if names.abnormal(code)]
    if abnormal:
        number = sum(counts[code] for code in abnormal)
        what = names.worst(abnormal)
        title = names.long(what) if what else listed([names.long(code) for code in sorted(abnormal)])
        return f"{title}: {'1 abnormal cell is' if number == 1 else f'{number} abnormal cells are'} seen."
    if bare and not counts and normal:
        return "No cells are seen."
    if names.system.kind == "categories" and normal and names.negative:
        organisms = [names.long(code) for code in sorted(counts) if names.kind(code) == "organism"]
        tail = f"; {listed(organisms)}" if organisms else ""
        return f"{names.negative[1]}{tail}."
    if not counts:
        return "No cells are seen." if normal else ""
    rest = [names.counted(code, counts[code]) for code in sorted(counts)]
    seen = f"{listed(rest)} {'is' if sum(counts.values()) == 1 else 'are'} seen"
    return f"{seen[0].upper()}{seen[1:]}."


def narrative(
    names: Names, boxes: Sequence[LabelledBox], size: tuple[int, int], *, absent: Sequence[str], mpp: float | None
) -> str:
    """Several sentences: what, how many, where, how large (um, where the resolution is known), and what is absent."""
    counts = Counter(found.label for found in boxes)
    parts = []
    if boxes:
        things = [names.counted(code, number) for code, number in sorted(counts.items())]
        parts.append(f"The field shows {listed(things)}.")
    for code, number in sorted(counts.items()):
        if number > 4:
            continue
        where = list(dict.fromkeys(place(b.box, size) for b in boxes if b.label == code))
        verb = "lies" if number == 1 else "lie"
        parts.append(f"{names.short(code)} {verb} in the {listed(where)}.")
    if mpp and boxes:
        largest = max(boxes, key=lambda found: found.box.area)
        wide, high = round(largest.box.width * mpp), round(largest.box.height * mpp)
        parts.append(f"The largest, {names.short(largest.label)}, measures about {wide} by {high} um.")
    if absent:
        parts.append(f"No {listed([names.plural(code) for code in absent])} are seen.")
    return " ".join(parts)
