"""Reads a conversation that was written in one dialect and says the same in another.

Boxes go through `wsi_chat.dialects`: parsed by the source's grammar, written by the target's. What no rule covers
stays as it is, but for its boxes; where both dialects are the same and the picture keeps its size, every byte stays.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from wsi_chat.datasets import wordings
from wsi_chat.dialects import Dialect, Frame
from wsi_chat.dialects.grammars import GRAMMARS, NUMBER, Mark, four_numbers, settle
from wsi_chat.errors import SettingError
from wsi_chat.schema import Answer, Box, LabelledBox, TaskName, Turn
from wsi_chat.tasks import LETTERS, Ask

IMAGE_MARK = "<image>"
Probe = Literal["ground", "choice", "refer"]
_SPACES: dict[str, tuple[float, float]] = {"norm1000": (1000, 1000), "norm1": (1, 1), "norm1024": (1024, 1024)}
_MARKS = re.compile(rf"\A\s*((?:{IMAGE_MARK}\s*)*)(.*)\Z", re.DOTALL)
_INLINE = {
    "region": re.compile(r"<\s*region\s*>([^<]*)<\s*/\s*region\s*>", re.IGNORECASE),
    "tokens": re.compile(r"<\|box_start\|>([^<]*)<\|box_end\|>"),
    "ref_box": re.compile(r"<box>([^<]*)</box>"),
    "json": re.compile(r"\[([^\[\]]*)\]"),
    "list": re.compile(r"\[([^\[\]]*)\]"),
}
"""Where one box stands inside a sentence; ``loc`` boxes stand in lists only."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer as the target says them, and what a test of the answer needs to know.

    ``ask`` is what was recognised of the question (its region in pixels of the picture), None for free words.
    ``kind`` is set where the answer can be scored: ``truth`` then holds the boxes (pixels of the picture) of
    ``ground``, and ``right`` the class of ``refer`` or the option of ``choice``; ``label`` is the class asked for.
    """

    question: str
    answer: str
    ask: Ask | None = None
    kind: Probe | None = None
    label: str = ""
    truth: tuple[LabelledBox, ...] = ()
    right: str = ""


class Translator:
    """From one dialect to another. Raises SettingError for a box that cannot be carried over."""

    def __init__(self, source: Dialect, target: Dialect) -> None:
        self.source, self.target = source, target
        self.same = source.spec == target.spec

    def turns(
        self, turns: Sequence[Turn], sizes: Sequence[tuple[int, int]]
    ) -> tuple[tuple[Turn, ...], tuple[Exchange, ...]]:
        """All turns of a conversation in the target's words, and its exchanges.

        Args:
            turns: checked: an optional system turn, then user and assistant in turn.
            sizes: (width, height) of each picture, in pixels.
        """
        frames = self._frames(turns, sizes)
        written: list[Turn] = [turn for turn in turns if turn.role == "system"]
        if not written and self.target.spec.system:
            written.append(Turn("system", self.target.spec.system))
        talk = [turn for turn in turns if turn.role != "system"]
        exchanges = []
        for question, answer in zip(talk[::2], talk[1::2], strict=True):
            exchange = self.exchange(question.text, answer.text, frames)
            exchanges.append(exchange)
            written += [Turn("user", exchange.question), Turn("assistant", exchange.answer)]
        return tuple(written), tuple(exchanges)

    def _frames(self, turns: Sequence[Turn], sizes: Sequence[tuple[int, int]]) -> tuple[Frame, Frame] | None:
        """How boxes are read and written; None without a picture to measure them by."""
        distinct = list(dict.fromkeys(sizes))
        if not distinct:
            return None
        if len(distinct) > 1 and any(self._boxes_in(turn.text) for turn in turns):
            shown = ", ".join(f"{width}x{height}" for width, height in distinct)
            raise SettingError(
                f"there are boxes and pictures of several sizes ({shown}): whose boxes they are cannot be told",
                hint="Bring the pictures of one conversation to one size.",
            )
        size = distinct[0]
        space = _SPACES.get(self.source.spec.coordinates, size)
        # a data set holds its pictures as they are sent: nothing is resized on the source's side
        return Frame(size, size, space), self.target.frame(size)

    def _boxes_in(self, text: str) -> bool:
        pattern = _INLINE.get(self.source.spec.boxes)
        return any(four_numbers(found[1]) for found in pattern.finditer(text)) if pattern else "<loc" in text

    def exchange(self, question: str, answer: str, frames: tuple[Frame, Frame] | None) -> Exchange:
        """One question and its answer. ``frames`` are the picture's in the source and in the target."""
        found = _MARKS.match(question)
        assert found is not None
        marks, words = found[1].count(IMAGE_MARK) * IMAGE_MARK, found[2].strip()
        if IMAGE_MARK in words or frames is None:
            # a picture amid the words: no prompt of any dialect looks like that
            return Exchange(marks + self._inline(words, frames), self._inline(answer, frames))
        ask = self._recognised(words, frames[0])
        read = self._answered(answer, ask, words, frames)
        if self.same and frames[1].sent == frames[1].given:
            return replace(read, question=marks + words, answer=answer, ask=ask)
        written = self._inline(words, frames) if ask is None else self.target.prompt(ask, frames[1])
        return replace(read, question=marks + written, ask=ask)

    # ------------------------------------------------------------------------------------------ questions

    def _recognised(self, words: str, frame: Frame) -> Ask | None:
        prompts = self.source.spec.prompts
        if found := pattern(prompts.choice).fullmatch(words):
            options = self._options(found["options"])
            try:
                return Ask("mcq", topic=found["topic"], options=options)
            except SettingError:
                return None
        if found := pattern(prompts.ground).fullmatch(words):
            return Ask("ground", target=self._label(found["label"]))
        if words == prompts.describe:
            return Ask("describe")
        if (found := pattern(prompts.refer).fullmatch(words)) and (box := self._box(found["box"], frame)):
            return Ask("refer", region=box)
        if (found := pattern(prompts.vqa_region).fullmatch(words)) and (box := self._box(found["box"], frame)):
            return Ask("vqa", question=found["question"], region=box)
        if self._boxes_in(words):
            return None
        free = pattern(prompts.vqa).fullmatch(words)
        return Ask("vqa", question=free["question"]) if free and free["question"].strip() else None

    def _options(self, text: str) -> tuple[str, ...]:
        """The options of a choice, split where the next letter stands."""
        prompts = self.source.spec.prompts
        before, _, after = prompts.option.partition("{text}")
        options: list[str] = []
        rest = text
        for number, letter in enumerate(LETTERS):
            head = before.format(letter=letter)
            if not rest.startswith(head):
                break
            rest = rest[len(head) :]
            following = LETTERS[number + 1 : number + 2]
            cut = f"{after}{prompts.separator}{before.format(letter=following)}"
            option, found, tail = rest.partition(cut)
            options.append(option if found else rest.removesuffix(after))
            if not found:
                break
            rest = before.format(letter=following) + tail
        return tuple(options)

    def _label(self, name: str) -> str:
        return self.source.known_label(name) or name

    def _box(self, text: str, frame: Frame) -> Box | None:
        """A box of a question, in pixels of the picture; None where there are not four numbers in order."""
        numbers = four_numbers(text)
        if numbers is None:
            return None
        x0, y0, x1, y1 = numbers
        if not (x0 < x1 and y0 < y1):
            return None
        return frame.to_given(Box(x0, y0, x1, y1)).clipped(frame.bounds)

    # ------------------------------------------------------------------------------------------ answers

    def _answered(self, answer: str, ask: Ask | None, words: str, frames: tuple[Frame, Frame]) -> Exchange:
        task: TaskName = ask.task if ask else "vqa"
        if ask and task == "mcq":
            chances = self.source.read_choice(Answer("", "mcq", answer), ask)
            if chances is None:
                return Exchange("", answer)
            right = max(chances, key=chances.__getitem__)
            letter = LETTERS[ask.options.index(right)]
            written = f"{self.target.spec.prompts.option.format(letter=letter, text=right)}."
            return Exchange("", written, kind="choice", right=right)
        if ask and (task == "refer" or (ask.region and ask.question in wordings.REFER)):
            label = self.source.known_label(answer.strip().rstrip("."))
            name = self.target.spec.names.get(label, label)
            return Exchange("", name or answer, kind="refer", right=label or answer.strip())
        return self._located(answer, ask, words, frames)

    def _located(self, answer: str, ask: Ask | None, words: str, frames: tuple[Frame, Frame]) -> Exchange:
        """An answer that may hold boxes. One that is nothing but boxes is written anew, as is its 'none'."""
        label = ask.target if ask and ask.task == "ground" else ""
        denied = self._none(answer)
        if denied is not None and (label := label or self._label(denied) or self._sought(words)):
            return Exchange("", self.target.write_boxes((), frames[1], label), kind="ground", label=label)
        boxes = self._read(answer, label or self._sought(words), frames[0])
        if not boxes:
            return Exchange("", answer)
        # the boxes' own name is the label; a wording may say it in the system's words
        label = label or boxes[0].label
        pure = _shape(self.source.write_boxes(boxes, frames[0], label)) == _shape(answer)
        if not pure:
            return Exchange("", self._inline(answer, frames))
        return Exchange(
            "", self.target.write_boxes(boxes, frames[1], label), kind="ground", label=label, truth=tuple(boxes)
        )

    def _sought(self, words: str) -> str:
        """The class in the other wordings of `wordings.GROUND`: a label where the dialect knows it, else as written."""
        for text in wordings.GROUND:
            found = pattern(text).fullmatch(words)
            name = next(iter(found.groupdict().values()), "") if found else ""
            if name:
                one = re.sub(r"(?: cells|s)$", "", name)
                return self.source.known_label(name) or self.source.known_label(one) or one
        return ""

    def _none(self, answer: str) -> str | None:
        """The class that the words for 'none' name ('' where they name no class), None for any other answer."""
        mark = "\N{REPLACEMENT CHARACTER}"
        frame = Frame((1, 1), (1, 1), (1, 1))
        none = self.source.write_boxes((), frame, mark)
        if mark not in none:
            return "" if answer.strip() == none else None
        before, _, after = none.partition(mark)
        text = answer.strip()
        if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
            name = text[len(before) : len(text) - len(after)]
            return name if len(name) <= 80 and not re.search(r"[.;:<>\n]", name) else None
        return None

    def _read(self, answer: str, label: str, frame: Frame) -> list[LabelledBox]:
        if not self._boxes_in(answer):
            return []
        marks: list[Mark] = list(GRAMMARS[self.source.spec.boxes](answer))
        if any(mark.numbers is None or mark.cut for mark in marks):
            raise SettingError("a box in the answer is not four numbers", hint="Correct it, or leave the line out.")
        settled, _, _ = settle(iter(marks), frame.space, order=self.source.spec.order)
        return [LabelledBox(self._label(name) or label, frame.to_given(box)) for name, box in settled]

    # ------------------------------------------------------------------------------------------ boxes amid words

    def _inline(self, text: str, frames: tuple[Frame, Frame] | None) -> str:
        """The text with every box that stands in it moved to the target's form and coordinates."""
        place = _INLINE.get(self.source.spec.boxes)
        if place is None or not self._boxes_in(text):
            return text
        if frames is None:
            raise SettingError("there are boxes and no picture", hint="Name the picture of the conversation.")

        def moved(found: re.Match[str]) -> str:
            box = self._box(found[1], frames[0])
            if box is None:
                if four_numbers(found[1]):
                    raise SettingError(f"box {found[1].strip()} has no area inside the picture")
                return found[0]
            return self._written(box, frames[1])

        return place.sub(moved, text)

    def _written(self, box: Box, frame: Frame) -> str:
        spec = self.target.spec
        prompt_match = pattern(spec.prompts.refer).fullmatch(self.target.prompt(Ask("refer", region=box), frame))
        assert prompt_match is not None
        return f"<region>{prompt_match['box']}</region>" if spec.boxes == "region" else prompt_match["box"]


@cache
def pattern(template: str) -> re.Pattern[str]:
    """A prompt template as a regular expression with one group per field, for ``fullmatch``."""
    parts = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P<{name}>.+?)")
    return re.compile("".join(parts), re.DOTALL)


def _shape(text: str) -> str:
    """A text without its numbers and spacing: what two lists of boxes have in common."""
    return " ".join(NUMBER.sub("#", text).split())
