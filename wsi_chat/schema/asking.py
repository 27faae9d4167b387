"""Questions to a model and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from wsi_chat.errors import whole_text
from wsi_chat.schema.geometry import Box

if TYPE_CHECKING:
    from PIL import Image

TaskName = Literal["screen", "mcq", "ground", "refer", "describe", "vqa", "region", "phrase", "narrative"]
AnswerStatus = Literal["ok", "truncated", "failed"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. Each ``<image>`` in ``text`` stands for the next of the query's images.

    ``text`` holds no lone surrogates: no server and no tokenizer takes them.
    """

    role: Literal["system", "user", "assistant"]
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", whole_text(self.text))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the words of an answer are drawn, where they are not the most probable ones (greedy decoding, the default).

    ``top_p`` 1 and ``top_k`` 0 rule out no word. The same question to the same batch gives the same answer.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Query:
    """One question for an engine: everything that determines the answer, and a key made from all of it.

    ``choices`` non-empty asks for one token out of these strings (letters of the options) with their
    probabilities. ``target`` is the class asked for (ground) or empty. ``sampling`` None decodes greedily.
    """

    key: str
    task: TaskName
    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...] = field(default=(), compare=False)
    choices: tuple[str, ...] = ()
    max_tokens: int = 256
    target: str = ""
    tile_id: str = ""
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine said to the query with the same key.

    ``probabilities``: option -> probability over the query's choices (sums to 1), from log-probabilities;
    None where the engine gives none. ``finish_reason``: ``stop``, ``length`` (then status is ``truncated``)
    or ``error``. ``text`` and ``error`` hold no lone surrogates, whatever they are made from: an answer that comes from
    the journal is the one that went there.
    """

    key: str
    task: TaskName
    text: str
    status: AnswerStatus = "ok"
    finish_reason: str = "stop"
    probabilities: Mapping[str, float] | None = None
    logprob: float | None = None
    error: str = ""
    seconds: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", whole_text(self.text))
        object.__setattr__(self, "error", whole_text(self.error))


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """A box with the class the model gave it. ``score`` is a probability where the engine offers one."""

    label: str
    box: Box
    score: float | None = None
