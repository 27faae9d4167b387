"""Questions about an annotated picture and their true answers, in a dialect's words.

Covers CytoChat's task kinds (ground, refer, describe, vqa, multi-turn, multiple choice) and EndoChat's five
paradigms (single phrase, vqa, region-based, grounding, detailed description). A class is said to be absent, or
counted, only where the annotations are exhaustive for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_chat.datasets import wordings
from wsi_chat.datasets.annotated import Annotated
from wsi_chat.datasets.wordings import Names
from wsi_chat.dialects import Dialect, Frame
from wsi_chat.schema import Box, LabelledBox
from wsi_chat.tasks import LETTERS, Ask

IMAGE_MARK = "<image>"
OWN_WORDING = 0.6
"""Share of questions asked in the dialect's own words; the rest is spread over the other wordings."""
CLASH = 0.5
"""Two boxes of different classes that overlap by this IoU make a question about the region ambiguous."""

BENIGN_KINDS = ("background", "benign", "blood")
KINDS = ("ground", "refer", "describe", "vqa", "multi-turn", "screen", "mcq", "phrase", "region", "narrative")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question (without the image mark) and its answer. ``kind`` is one of `KINDS`."""

    kind: str
    question: str
    answer: str


def clean(text: str) -> str:
    """Text from a file as data: without the image mark, on one line."""
    while IMAGE_MARK in text:
        text = text.replace(IMAGE_MARK, "")
    return " ".join(text.split())


class Interviewer:
    """Asks about one picture. ``most`` is the longest list of boxes that is asked for."""

    def __init__(
        self, picture: Annotated, dialect: Dialect, names: Names, rng: np.random.Generator, *, most: int = 24
    ) -> None:
        self.picture, self.dialect, self.names, self.rng, self.most = picture, dialect, names, rng, most
        self.frame: Frame = dialect.frame(picture.size)
        self.counts = Counter(found.label for found in picture.boxes)
        sure = picture.known - picture.unsure
        self.present = sorted(label for label in self.counts if label in sure)
        self.absent = sorted(label for label in sure if label not in self.counts)
        self.normal = self._normal()

    def _normal(self) -> bool | None:
        """Whether the picture shows nothing abnormal; None where that is not known or the source disagrees."""
        names, picture = self.names, self.picture
        shows_abnormal = any(names.abnormal(label) for label in self.counts)
        if not shows_abnormal and (
            not names.abnormal_codes <= picture.known or any(map(names.abnormal, picture.unsure))
        ):
            return None
        if not shows_abnormal and any(names.kind(label) == "unknown" for label in self.counts):
            return None
        if picture.abnormal is not None and names.abnormal_codes and picture.abnormal != shows_abnormal:
            return None
        return not shows_abnormal

    # ------------------------------------------------------------------------------------------ asking

    def _words(self, ask: Ask, others: Sequence[str], region: Box | None = None) -> str:
        if self.rng.random() < OWN_WORDING:
            return self.dialect.prompt(ask, self.frame)
        return self._free(self._one(others), region)

    def _free(self, question: str, region: Box | None = None) -> str:
        return self.dialect.prompt(Ask("vqa", question=clean(question), region=region), self.frame)

    def _one(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def ground(self, label: str) -> Exchange:
        """All boxes of a class in reading order, or that there is none."""
        name = self.dialect.spec.names.get(label, label)
        others = [text.format(name=name, plural=self.names.plural(label)) for text in wordings.GROUND]
        boxes = self._reading_order([b for b in self.picture.boxes if b.label == label])
        answer = self.dialect.write_boxes(boxes, self.frame, label)
        return Exchange("ground", self._words(Ask("ground", target=label), others), answer)

    def _reading_order(self, boxes: Sequence[LabelledBox]) -> list[LabelledBox]:
        band = max(self.picture.size[1] / 8, 1)
        return sorted(boxes, key=lambda b: (b.box.center[1] // band, b.box.center[0], b.box.center[1]))

    def refer(self, found: LabelledBox) -> Exchange:
        question = self._words(Ask("refer", region=found.box), wordings.REFER, found.box)
        return Exchange("refer", question, self.dialect.spec.names.get(found.label, found.label))

    def region(self, found: LabelledBox) -> Exchange:
        """A region-based question that is answered with a sentence."""
        abnormal = self.names.abnormal(found.label)
        if self.names.abnormal_codes and self.names.kind(found.label) != "unknown" and self.rng.random() < 0.5:
            answer = f"{'Yes' if abnormal else 'No'}, it shows {self._named(found.label)}."
            return Exchange("region", self._free(self._one(wordings.REGION), found.box), answer)
        where = wordings.place(found.box, self.picture.size)
        answer = f"The region in the {where} of the field shows {self._named(found.label)}."
        return Exchange("region", self._free(self._one(wordings.REGION_TEXT), found.box), answer)

    def _named(self, label: str) -> str:
        return f"{self.names.long(label)} ({label})" if self.names.long(label) != f"{label} cell" else label

    def choice(self, kind: str, topic: str, options: Sequence[str], right: str) -> Exchange:
        """A multiple-choice question, its options in an order drawn anew, answered ``B.text.``"""
        order = [options[i] for i in self.rng.permutation(len(options))]
        ask = Ask("screen" if kind == "screen" else "mcq", topic=topic, options=tuple(order))
        letter = LETTERS[order.index(right)]
        answer = f"{self.dialect.spec.prompts.option.format(letter=letter, text=right)}."
        return Exchange(kind, self.dialect.prompt(ask, self.frame), answer)

    def screen(self) -> Exchange | None:
        """The screening question of the reporting system, where its answer is known."""
        question = self.names.system.screen
        other = next(option for option in question.options if option != question.positive)
        if question.about_abnormality:
            if self.normal is None:
                return None
            right = other if self.normal else question.positive
        else:
            # a system that counts asks for one of its classes by name
            meant = [lab.code for lab in self.names.system.labels if lab.long_name.lower() in question.topic.lower()]
            if len(meant) != 1 or meant[0] not in {*self.present, *self.absent}:
                return None
            right = question.positive if meant[0] in self.present else other
        return self.choice("screen", question.topic, question.options, right)

    def category(self) -> Exchange | None:
        """Which category fits, among three to five of the system's."""
        abnormal = [label for label in self.counts if self.names.abnormal(label)]
        if self.normal is None or not self.names.negative:
            return None
        hidden = [label for label in self.picture.unsure if self.names.abnormal(label) and label not in abnormal]
        if hidden and not self.normal and self.names.worst([*abnormal, *hidden]) not in abnormal:
            return None  # what is only marked there may be the graver finding
        worst = self.names.worst(abnormal)
        right = self.names.negative[0] if self.normal else (self.names.category(worst) if worst else None)
        if right is None:
            return None
        others = [c.name for c in self.names.system.categories if c.name != right and (c.from_labels or not c.abnormal)]
        picked = self.rng.permutation(len(others))[: int(self.rng.integers(2, 5))]
        options = [right, *(others[i] for i in picked)]
        return self.choice("mcq", self._one(wordings.CATEGORY_TOPIC), options, right)

    def which(self) -> Exchange | None:
        """Which class is there, among one that is and up to three that are not."""
        if not self.present or not self.absent:
            return None
        right = self._one(self.present)
        picked = self.rng.permutation(len(self.absent))[:3]
        options = [self.names.short(code) for code in (right, *(self.absent[i] for i in picked))]
        if len({option.casefold() for option in options}) < len(options):
            return None
        return self.choice("mcq", self._one(wordings.REGION_TOPIC), options, self.names.short(right))

    def describe(self) -> Exchange | None:
        text = clean(self.picture.caption) or (
            wordings.sentence(self.names, self.picture.boxes, normal=self.normal, bare=self._benign_known())
            if self.picture.known and not self.picture.unsure
            else ""
        )
        # what is annotated abnormal below the source's own threshold is no finding to report
        if not text or (self.normal is None and self.picture.abnormal is not None and not self.picture.caption):
            return None
        return Exchange("describe", self._words(Ask("describe"), wordings.DESCRIBE), text)

    def _benign_known(self) -> bool:
        return any(self.names.kind(label) in BENIGN_KINDS for label in self.picture.known)

    def narrative(self) -> Exchange | None:
        if not self.picture.known or self.picture.unsure:
            return None
        some = sorted(self.rng.permutation(len(self.absent))[:2].tolist())
        text = wordings.narrative(
            self.names,
            self.picture.boxes,
            self.picture.size,
            absent=[self.absent[i] for i in some],
            mpp=self.picture.mpp,
        )
        return Exchange("narrative", self._free(self._one(wordings.NARRATIVE)), text) if text else None

    def any_abnormal(self) -> Exchange | None:
        if self.normal is None or not self.names.abnormal_codes:
            return None
        if any(map(self.names.abnormal, self.picture.unsure)):
            return None  # the list would not be complete
        found = [self.names.short(label) for label in sorted(self.counts) if self.names.abnormal(label)]
        text = (
            f"Yes, abnormal cells were found: {wordings.listed(found)}." if found else "No abnormal cells were found."
        )
        return Exchange("vqa", self._free(self._one(wordings.ANY_ABNORMAL)), text)

    def background(self) -> Exchange | None:
        """The normal cells of a field whose normal cells are annotated."""
        if not any(self.names.kind(label) in BENIGN_KINDS for label in (*self.present, *self.absent)):
            return None
        if any(
            self.names.kind(label) in (*BENIGN_KINDS, "unknown")
            for label in (*self.picture.unsure, *self.counts)
            if label not in self.present or self.names.kind(label) == "unknown"
        ):
            return None
        cells = [self.names.plural(label) for label in self.present if self.names.kind(label) in BENIGN_KINDS]
        text = f"In the background are {wordings.listed(cells)}." if cells else "No other cells are seen."
        return Exchange("vqa", self._free(self._one(wordings.BACKGROUND)), text)

    def how_many(self, label: str) -> Exchange:
        question = self._one(wordings.HOW_MANY).format(plural=self.names.plural(label))
        number = self.counts[label]
        text = f"There {'is' if number == 1 else 'are'} {self.names.counted(label, number)}."
        return Exchange("vqa", self._free(question), text)

    def phrase(self, label: str) -> Exchange:
        """EndoChat's single phrase: a number, or yes and no."""
        if self.rng.random() < 0.5:
            question = self._one(wordings.HOW_MANY).format(plural=self.names.plural(label))
            answer = str(self.counts[label])
        else:
            question = self._one(wordings.PRESENT).format(name=self.names.short(label))
            answer = "yes" if self.counts[label] else "no"
        return Exchange("phrase", self._free(f"{question} {wordings.PHRASE}"), answer)

    # ------------------------------------------------------------------------------------------ a set of questions

    def some(self, *, per_kind: int = 2) -> list[tuple[Exchange, ...]]:
        """Conversations about the picture: at most ``per_kind`` of each kind, and one of several turns."""
        few = [label for label in self.present if self.counts[label] <= self.most]
        shown = self._draw(few, per_kind)
        missing = self._draw(self.absent, max(1, per_kind // 2))
        clear = [found for found in self.picture.boxes if self._clear(found) and found.label not in self.picture.unsure]
        cells = [clear[i] for i in self.rng.permutation(len(clear))]
        made: list[Exchange | None] = [self.ground(label) for label in (*shown, *missing)]
        made += [self.refer(found) for found in cells[:per_kind]]
        made += [self.region(found) for found in cells[::-1][:per_kind]]
        made += [self.phrase(label) for label in self._draw([*self.present, *self.absent], per_kind)]
        made += [self.how_many(label) for label in self._draw([*self.present, *self.absent], 1)]
        once: tuple[Callable[[], Exchange | None], ...] = (
            self.screen, self.category, self.which, self.describe, self.narrative, self.any_abnormal, self.background,
        )  # fmt: skip
        made += [ask() for ask in once]
        made += [Exchange("vqa", self._free(q), clean(a)) for q, a in self.picture.questions if clean(a)]
        exchanges = [exchange for exchange in made if exchange is not None]
        talks = [(exchange,) for exchange in exchanges]
        turns = [exchange for exchange in exchanges if exchange.kind in ("vqa", "describe", "ground", "region")]
        if len(turns) >= 2:
            picked = self.rng.permutation(len(turns))[: int(self.rng.integers(2, min(4, len(turns)) + 1))]
            talks.append(tuple(turns[i] for i in picked))
        return list(dict.fromkeys(talks))

    def _draw(self, labels: Sequence[str], most: int) -> list[str]:
        return [labels[i] for i in self.rng.permutation(len(labels))[:most]]

    def _clear(self, found: LabelledBox) -> bool:
        return all(b.label == found.label or b.box.iou(found.box) < CLASH for b in self.picture.boxes)
