"""The model's side of a conversation: turns about pictures, as one query in the model's own chat template.

Long conversations are cut to the model's context by whole exchanges, the oldest first; the picture in view stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wsi_chat.dialects.dialect import IMAGE_MARK, rekeyed
from wsi_chat.engines.protocol import MeasuringEngine
from wsi_chat.errors import AnswerError
from wsi_chat.schema import Query, Turn

if TYPE_CHECKING:
    from PIL import Image

    from tilers.field import Field
    from wsi_chat.dialects import Dialect, Frame
    from wsi_chat.engines import Engine
    from wsi_chat.tasks import Ask

CONTEXT_TOKENS = 4096
"""Taken where an engine does not say how long its model's context is."""
TOKEN_CHARS = 3
IMAGE_SIDE = 28
"""Rough size of a token, for engines that cannot count: characters of text, and the side of a square of pixels."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    user: str
    assistant: str
    field_id: str
    image: Image.Image


@dataclass(slots=True)
class Thread:
    """Exchanges with one model. ``dropped`` counts those that were cut off to fit the model's context."""

    dialect: Dialect
    dropped: int = 0
    _past: list[_Exchange] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._past)

    def query(
        self, ask: Ask, shown: Field, engine: Engine, *, decoding: Mapping[str, Any], extra: str = ""
    ) -> tuple[Query, Frame]:
        """The next question, with the exchanges before it as far as the model's context goes.

        A model that takes one picture in a question starts anew with each picture; of the others, a new picture is
        shown in the turn that is about it.

        Raises:
            AnswerError: the question alone does not fit.
        """
        single, frame = self.dialect.build(
            ask, shown.image, tile_id=shown.id, model_id=engine.model_id, decoding=decoding
        )
        if not self.dialect.several_images and self._past and self._past[-1].field_id != shown.id:
            self._past.clear()
        while True:
            query = self._joined(single, shown)
            if room_for_answer(engine, query) >= min(query.max_tokens, CONTEXT_TOKENS // 8):
                return rekeyed(query, self.dialect, model_id=engine.model_id, decoding=decoding), frame
            if not self._past:
                raise AnswerError("The question is too long for the model.", hint="Ask it in fewer words.")
            self._past.pop(0)
            self.dropped += 1

    def _joined(self, single: Query, shown: Field) -> Query:
        """The past exchanges and the new question; each picture is marked in the first turn left that is about it."""
        system = [turn for turn in single.turns if turn.role == "system"]
        turns: list[Turn] = list(system)
        images: list[Image.Image] = []
        current = ""
        for past in self._past:
            turns.append(Turn("user", (IMAGE_MARK if past.field_id != current else "") + past.user))
            if past.field_id != current:
                images.append(past.image)
                current = past.field_id
            turns.append(Turn("assistant", past.assistant))
        text = single.turns[-1].text.removeprefix(IMAGE_MARK)
        if current != shown.id:
            text = IMAGE_MARK + text
            images.append(single.images[0])
        return replace(single, turns=(*turns, Turn("user", text)), images=tuple(images))

    def remember(self, query: Query, answer: str, shown: Field) -> None:
        """Keep an exchange that was answered. Image marks in a model's own words are no images."""
        words = answer.replace(IMAGE_MARK, "")
        text = query.turns[-1].text.removeprefix(IMAGE_MARK)
        self._past.append(_Exchange(text, words, shown.id, query.images[-1]))

    def clear(self) -> None:
        self._past.clear()


def room_for_answer(engine: Engine, query: Query) -> int:
    """Tokens left for the answer: as the engine counts them, else by a rough estimate."""
    room = engine.room(query) if isinstance(engine, MeasuringEngine) else None
    if room is not None:
        return room
    text = sum(len(turn.text) for turn in query.turns) // TOKEN_CHARS + 8 * len(query.turns)
    pictures = sum(-(-image.width // IMAGE_SIDE) * -(-image.height // IMAGE_SIDE) for image in query.images)
    return CONTEXT_TOKENS - text - pictures
