"""The fields of a specimen of several photographs, as a strip under the slide: each leads to its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wsi_chat.app.parts import attributes, box, picture, text
from wsi_chat.app.words import PageWords
from wsi_chat.schema import Box, FieldRecord

PICTURE_PX = 120


def film(slide_id: str, fields: Sequence[FieldRecord], words: PageWords, *, fly: Callable[[Box], None]) -> None:
    """Build the strip in place; a field that cannot be read says why."""
    with box("nav", "wsi-film") as strip:
        attributes(strip, aria_label=words("fields.heading"), data_testid="film")
        for field in fields:
            with box("button") as choice:
                attributes(choice, type="button", title=field.error or field.name, data_field=field.name)
                if not field.error:
                    corners = ",".join(
                        f"{value:.0f}" for value in (field.box.x0, field.box.y0, field.box.x1, field.box.y1)
                    )
                    picture(
                        f"/slides/{slide_id}/region.jpg?box={corners}&px={PICTURE_PX}",
                        words("fields.field", n=field.number),
                    )
                text(f"{field.number}{' ✕' if field.error else ''}")
            choice.on("click", lambda field=field: fly(field.box))
