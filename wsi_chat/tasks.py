"""What can be asked of a field, whichever model answers.

An `Ask` says what is wanted; a dialect turns it into one model's words. Boxes are pixels of the image given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, TaskName

if TYPE_CHECKING:
    from wsi_chat.terminology import System

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

DEFAULT_TOKENS: dict[str, int] = {
    "screen": 1,
    "mcq": 1,
    "ground": 1024,
    "refer": 32,
    "describe": 256,
    "vqa": 256,
}
"""Maximum tokens per answer. ``ground`` holds about 26 CytoChat boxes; longer answers are marked truncated."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question about one image, before any model's wording.

    ``target`` is the class to locate; ``topic`` and ``options`` make a multiple-choice question; ``region``
    is in pixels of the image as given; ``max_tokens`` limits the answer.
    """

    task: TaskName
    target: str = ""
    question: str = ""
    topic: str = ""
    options: tuple[str, ...] = ()
    region: Box | None = None
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise SettingError(f"max_tokens is {self.max_tokens}", hint="Give a positive number of tokens.")
        if self.task in ("screen", "mcq"):
            _check_options(self.options)
        elif self.options:
            raise SettingError(f"a {self.task} question takes no options, got {list(self.options)}")
        if self.task == "ground" and not self.target.strip():
            raise SettingError("nothing to locate: the class name is empty", hint="Name a class, e.g. hsil.")
        if self.task == "refer" and self.region is None:
            raise SettingError("refer needs a region", hint="Give x0 y0 x1 y1 in pixels of the image.")
        if self.task == "vqa" and not self.question.strip():
            raise SettingError("the question is empty", hint="Write a question.")

    @property
    def letters(self) -> tuple[str, ...]:
        """The letter of each option, in order: ``A``, ``B``, ..."""
        return tuple(LETTERS[: len(self.options)])


def _check_options(options: tuple[str, ...]) -> None:
    if not 2 <= len(options) <= len(LETTERS):
        raise SettingError(
            f"a choice needs 2 to {len(LETTERS)} options, got {len(options)}",
            hint="List the options to choose from.",
        )
    names: set[str] = set()
    for option in options:
        name = option.strip().casefold()
        if not name:
            raise SettingError(f"an option is empty: {list(options)}", hint="Give every option a text.")
        if name in names:
            raise SettingError(f"option {option!r} is listed twice: {list(options)}", hint="Remove one.")
        names.add(name)


def screen(system: System, *, max_tokens: int = DEFAULT_TOKENS["screen"]) -> Ask:
    """The screening question of a reporting system."""
    question = system.screen
    return Ask("screen", topic=question.topic, options=tuple(question.options), max_tokens=max_tokens)


def mcq(topic: str, options: Iterable[str], *, max_tokens: int = DEFAULT_TOKENS["mcq"]) -> Ask:
    """A multiple-choice question. Raises SettingError for duplicate or empty options."""
    return Ask("mcq", topic=topic, options=tuple(options), max_tokens=max_tokens)


def ground(label: str, *, max_tokens: int = DEFAULT_TOKENS["ground"]) -> Ask:
    """Where is every object of this class?"""
    return Ask("ground", target=label, max_tokens=max_tokens)


def refer(box: Box, *, max_tokens: int = DEFAULT_TOKENS["refer"]) -> Ask:
    """What is in this box (pixels of the image as given)?"""
    return Ask("refer", region=box, max_tokens=max_tokens)


def describe(*, max_tokens: int = DEFAULT_TOKENS["describe"]) -> Ask:
    """What would the report say of this field?"""
    return Ask("describe", max_tokens=max_tokens)


def vqa(question: str, *, region: Box | None = None, max_tokens: int = DEFAULT_TOKENS["vqa"]) -> Ask:
    """A free question, about a region if one is given."""
    return Ask("vqa", question=question, region=region, max_tokens=max_tokens)


PHRASE_SUFFIX = "Answer the question with a single phrase."
"""EndoChat's wording for its single-phrase paradigm."""


def phrase(question: str, *, region: Box | None = None, max_tokens: int = DEFAULT_TOKENS["refer"]) -> Ask:
    """A question to be answered in a few words."""
    text = question.strip()
    if text and not text.casefold().rstrip(".").endswith(PHRASE_SUFFIX.casefold().rstrip(".")):
        text = f"{text} {PHRASE_SUFFIX}"
    return vqa(text, region=region, max_tokens=max_tokens)
