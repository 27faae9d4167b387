"""A dialect: builds queries in a model family's own words and reads its answers back.

Data plus one small parser. User text is data: it never becomes an image mark or a format field.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wsi_chat.dialects.choice import CONTROL, chosen_option
from wsi_chat.dialects.frame import Frame, ImagePolicy, fit
from wsi_chat.dialects.grammars import GRAMMARS, settle
from wsi_chat.dialects.reasoning import final_answer, has_reasoning, unfinished
from wsi_chat.dialects.spec import DialectSpec
from wsi_chat.dialects.writers import WRITERS, Written
from wsi_chat.errors import AnswerError, SettingError
from wsi_chat.schema import Answer, Box, LabelledBox, Query, Turn
from wsi_chat.tasks import Ask

if TYPE_CHECKING:
    from PIL import Image

    from wsi_chat.terminology import System

IMAGE_MARK = "<image>"
BINS = 1024
"""Coordinate bins of ``norm1024``, numbered 0..1023; bin n reads as n / 1024 of the side."""

FREE_TILE_PX = 512
"""Tile side where a model takes any size; a multiple of no patch is needed, the policy rounds."""


NONE_WORDS = re.compile(r"\b(?:no|none|not|nothing|without|absent|absence|zero|0)\b|\[\s*\]", re.IGNORECASE)
REFUSAL = re.compile(r"\b(?:cannot|can[’']?t|unable|sorry|not able|won[’']?t)\b", re.IGNORECASE)


def _says_none(text: str) -> bool:
    """Whether an answer without any box says that there is nothing to find, rather than nothing at all."""
    return NONE_WORDS.search(text) is not None and REFUSAL.search(text) is None


@dataclass(frozen=True, slots=True)
class BoxReading:
    """The boxes of one answer, in pixels of the image as given.

    ``dropped`` counts every box in the answer that could not be used (unreadable, outside, without area,
    repeated, cut off). ``truncated``: the answer ended before it was complete. ``understood`` is False where the
    answer holds neither a box nor words for 'none' (a refusal, say): it is then no answer, and not 'none found'.
    """

    boxes: tuple[LabelledBox, ...]
    dropped: int
    truncated: bool
    understood: bool = True


@dataclass(frozen=True, slots=True)
class Beside:
    """Images that are shown after the one that a question is about, and the words that say what they are."""

    images: tuple[Image.Image, ...]
    note: str


class Dialect:
    """Asks one model family and reads its answers. Stateless; safe to share between threads."""

    def __init__(self, spec: DialectSpec) -> None:
        self.spec = spec

    def __repr__(self) -> str:
        return f"Dialect({self.spec.name!r})"

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def image_px(self) -> ImagePolicy:
        """How images are sized before they are sent."""
        return self.spec.image

    @property
    def tile_px(self) -> int:
        """Side in pixels of the square tiles that suit the model."""
        return self.spec.image.side or FREE_TILE_PX

    def mpp_for(self, system: System) -> float:
        """µm/px of tiles for a reporting system: this model's own wish, else the system's default."""
        return self.spec.mpp.get(system.code, system.mpp)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names that the model was trained on; empty where any name may be asked."""
        return self.spec.labels

    @property
    def several_images(self) -> bool:
        """Whether the family's models take several images in one question."""
        return self.spec.several_images

    @property
    def known_questions(self) -> tuple[str, ...]:
        """The only free questions that the model was trained on; empty where any may be asked."""
        return self.spec.known_questions

    @property
    def narrates(self) -> bool:
        """Whether the family follows instructions well enough to write a report's narrative."""
        return self.spec.narrates

    @cached_property
    def prompts_sha256(self) -> str:
        """Hash over everything of the dialect that reaches a model or reads its answers."""
        return hashlib.sha256(self.spec.wording.encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Name, version and hash: what a query's key says of the dialect that it was asked in."""
        return f"{self.name}/{self.spec.version}/{self.prompts_sha256}"

    # ------------------------------------------------------------------------------------------ asking

    def frame(self, size: tuple[int, int]) -> Frame:
        """How an image of ``size`` (width, height) is sent, and the map of its coordinates."""
        sent = self.spec.image.sent_size(*size)
        ranges: dict[str, tuple[float, float]] = {"sent": sent, "norm1000": (1000, 1000), "norm1": (1, 1)}
        ranges["norm1024"] = (BINS, BINS)
        return Frame(size, sent, ranges[self.spec.coordinates])

    def prompt(self, ask: Ask, frame: Frame) -> str:
        """The user's turn without the image mark."""
        texts = self.spec.prompts
        if ask.task in ("screen", "mcq"):
            options = texts.separator.join(
                texts.option.format(letter=letter, text=option)
                for letter, option in zip(ask.letters, ask.options, strict=True)
            )
            return texts.choice.format(topic=ask.topic, options=options)
        if ask.task == "ground":
            return texts.ground.format(label=self.spec.names.get(ask.target, ask.target))
        if ask.task == "describe":
            return texts.describe
        if ask.task == "refer":
            return texts.refer.format(box=self._box_text(ask.region, frame))
        if ask.task == "vqa":
            if ask.region is None:
                return texts.vqa.format(question=ask.question)
            return texts.vqa_region.format(question=ask.question, box=self._box_text(ask.region, frame))
        raise SettingError(f"dialect {self.name} has no words for task {ask.task!r}", hint="Use another task.")

    def build(
        self,
        ask: Ask,
        image: Image.Image,
        *,
        tile_id: str = "",
        beside: Beside | None = None,
        model_id: str,
        decoding: Mapping[str, Any],
    ) -> tuple[Query, Frame]:
        """The query for one image, which is resized here, and the frame that maps its boxes back.

        ``beside`` are further images for the same question, of a family with `several_images`. ``model_id`` (name
        and revision) and ``decoding`` (plain values, seed included) become part of the key. Raises AnswerError for
        an image of unusable shape, SettingError for a region outside the image.
        """
        frame = self.frame(image.size)
        images: tuple[Image.Image, ...] = (fit(image, frame.sent),)
        text = self.prompt(ask, frame)
        while IMAGE_MARK in text:
            # user text is data: a mark in it, or one left over by removing another, asks for no second image
            text = text.replace(IMAGE_MARK, "")
        if beside is not None and beside.images:
            images += tuple(fit(other, self.frame(other.size).sent) for other in beside.images)
            text = f"{beside.note} {text}"
        text = IMAGE_MARK * len(images) + text
        turns: tuple[Turn, ...] = (Turn("user", text),)
        if self.spec.system:
            turns = (Turn("system", self.spec.system), *turns)
        choices = ask.letters
        max_tokens = min(ask.max_tokens, self.spec.max_tokens.get(ask.task, ask.max_tokens))
        key = query_key(
            task=ask.task,
            turns=turns,
            images=images,
            choices=choices,
            max_tokens=max_tokens,
            decoding=decoding,
            model_id=model_id,
            dialect=self.identity,
        )
        query = Query(
            key=key,
            task=ask.task,
            turns=turns,
            images=images,
            choices=choices,
            max_tokens=max_tokens,
            target=ask.target,
            tile_id=tile_id,
        )
        return query, frame

    def _box_text(self, region: Box | None, frame: Frame) -> str:
        inside = region.clipped(frame.bounds) if region is not None else None
        if inside is None:
            raise SettingError(
                f"region {region} has no area inside the image of {frame.given[0]}x{frame.given[1]} px",
                hint="Give x0 y0 x1 y1 in pixels of the image.",
            )
        box = frame.to_model(inside)
        largest = self._largest(math.inf)
        corners = {name: self._number(min(getattr(box, name), largest)) for name in ("x0", "y0", "x1", "y1")}
        return self.spec.box_text.format(**corners)

    def _largest(self, limit: float) -> float:
        """The largest number that may be written on an axis that ends at ``limit``: the last bin has no far edge."""
        return BINS - 1 if self.spec.coordinates == "norm1024" else limit

    def _number(self, value: float) -> str:
        # as the training data were written: Python's round() and repr, so 248.9 and not 248.90
        return str(round(value)) if self.spec.decimals == 0 else repr(round(float(value), self.spec.decimals))

    # ------------------------------------------------------------------------------------------ reading

    def read_boxes(self, answer: Answer, frame: Frame, label: str) -> BoxReading:
        """The boxes of a grounding answer. ``label`` names those that the model left unnamed or misnamed."""
        if answer.status == "failed":
            return BoxReading((), 0, False, understood=False)
        marks = GRAMMARS[self.spec.boxes](final_answer(answer.text))
        settled, dropped, truncated = settle(
            marks, frame.space, truncated=self.truncated(answer), order=self.spec.order
        )
        boxes = []
        for name, box in settled:
            # the division may land a hair outside the image: clip once more in its own pixels
            given = frame.to_given(box).clipped(frame.bounds)
            if given is None:
                dropped += 1
            else:
                boxes.append(LabelledBox(self.known_label(name) or label, given))
        understood = bool(boxes or dropped) or _says_none(self.read_text(answer))
        return BoxReading(tuple(boxes), dropped, truncated, understood)

    def write_boxes(self, boxes: Sequence[LabelledBox], frame: Frame, label: str) -> str:
        """The answer that this family gives for these boxes (pixels of the image as given), in their order.

        The inverse of `read_boxes` but for rounding: ``label`` is the class asked for, which the words for
        'none' may name. A box is cut at the image's edge, and kept at least one unit wide and high; two that
        round to the same text are written once. Raises SettingError for a box with no area inside the image.
        """
        written = []
        for found in boxes:
            inside = found.box.clipped(frame.bounds)
            if inside is None:
                raise SettingError(
                    f"box {found.box} of {found.label!r} has no area inside the image of "
                    f"{frame.given[0]}x{frame.given[1]} px",
                    hint="Give boxes in pixels of the image, x0 y0 x1 y1.",
                )
            box = frame.to_model(inside)
            x0, x1 = self._span(box.x0, box.x1, frame.space[0])
            y0, y1 = self._span(box.y0, box.y1, frame.space[1])
            name = self.spec.names.get(found.label, found.label)
            corners = (y0, x0, y1, x1) if self.spec.order == "yxyx" else (x0, y0, x1, y1)
            written.append(Written(name, tuple(self._number(corner) for corner in corners)))
        asked = self.spec.names.get(label, label)
        return WRITERS[self.spec.boxes](list(dict.fromkeys(written)), asked, self.spec.box_key)

    def _span(self, low: float, high: float, limit: float) -> tuple[float, float]:
        """Both ends rounded as they will be written, kept apart by one unit at least and inside the range."""
        unit = 10.0**-self.spec.decimals
        limit = self._largest(limit)
        low, high = (min(float(round(end, self.spec.decimals)), limit) for end in (low, high))
        if high > low:
            return low, high
        low = max(0.0, min(low, math.floor(limit / unit) * unit - unit))
        return low, low + unit

    def read_choice(self, answer: Answer, ask: Ask) -> dict[str, float] | None:
        """Option text -> probability, in the order asked; None where the answer names no option.

        From the engine's probabilities where it gives them; otherwise the option that `chosen_option` reads in the
        text gets 1. Probabilities of an answer that begins with reasoning are not those of its choice.
        """
        if answer.status == "failed":
            return None
        if answer.probabilities is not None and not has_reasoning(answer.text):
            if set(answer.probabilities) != set(ask.letters) or not all(
                map(math.isfinite, answer.probabilities.values())
            ):
                return None
            return {
                option: float(answer.probabilities[letter])
                for letter, option in zip(ask.letters, ask.options, strict=True)
            }
        chosen = chosen_option(answer.text, ask.options)
        return None if chosen is None else {option: float(n == chosen) for n, option in enumerate(ask.options)}

    def read_text(self, answer: Answer) -> str:
        """The answer's text without reasoning, control tokens and surrounding space."""
        return CONTROL.sub("", final_answer(answer.text)).strip()

    @staticmethod
    def truncated(answer: Answer) -> bool:
        """Whether the answer was cut off, by its length or in the middle of its reasoning."""
        return answer.status == "truncated" or unfinished(answer.text)

    def read_label(self, answer: Answer) -> str:
        """The class that a refer answer names: a known label where it is one, else its cleaned text.

        Empty where the answer failed. Raises nothing.
        """
        if answer.status == "failed":
            return ""
        text = self.read_text(answer)
        line = text.splitlines()[0].strip(" .,:;!\"'*`") if text else ""
        return self.known_label(line) or line

    def known_label(self, text: str) -> str:
        """The dialect's label for a spelling (``HSIL``, ``asc-us``, a name used in prompts), or empty."""
        name = " ".join(text.casefold().split())
        return self._spellings.get(name, "")

    @cached_property
    def _spellings(self) -> dict[str, str]:
        spellings = {alias.casefold(): label for alias, label in self.spec.aliases.items()}
        spellings |= {name.casefold(): label for label, name in self.spec.names.items()}
        spellings |= {label.casefold(): label for label in self.spec.labels}
        return spellings


def rekeyed(query: Query, dialect: Dialect, *, model_id: str, decoding: Mapping[str, Any]) -> Query:
    """The query with the key that belongs to its turns and images, after either was changed."""
    key = query_key(
        task=query.task,
        turns=query.turns,
        images=query.images,
        choices=query.choices,
        max_tokens=query.max_tokens,
        decoding=decoding,
        model_id=model_id,
        dialect=dialect.identity,
    )
    return replace(query, key=key)


def query_key(
    *,
    task: str,
    turns: tuple[Turn, ...],
    images: tuple[Image.Image, ...],
    choices: tuple[str, ...],
    max_tokens: int,
    decoding: Mapping[str, Any],
    model_id: str,
    dialect: str,
) -> str:
    """sha256 over everything that determines an answer. The same pixels and question give the same key."""
    from wsi_chat.picture import image_sha256  # a dialect is known before any picture is there

    content = {
        "task": task,
        "turns": [[turn.role, turn.text] for turn in turns],
        "images": [image_sha256(image) for image in images],
        "choices": choices,
        "max_tokens": max_tokens,
        "decoding": dict(decoding),
        "model": model_id,
        "dialect": dialect,
    }
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise AnswerError(f"decoding settings {dict(decoding)} are not plain values: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()
