"""The fields of one specimen: photographs that are looked at together, shown as a strip under the slide.

The seam to specimens of many fields: what belongs together is the entries with the same ``specimen``, which `source`
takes from a folder of pictures or from summary.csv (column ``specimen_id``).
"""

from __future__ import annotations

from collections.abc import Callable

from wsi_chat.app.parts import attributes, box, picture, text
from wsi_chat.app.source import Collection, Entry
from wsi_chat.app.words import PageWords


def fields_of(collection: Collection, entry: Entry) -> list[Entry]:
    """The fields of an entry's specimen in order, itself among them; empty where it is alone."""
    if not entry.specimen:
        return []
    found = [other for other in collection.entries.values() if other.specimen == entry.specimen]
    return found if len(found) > 1 else []


def film(fields: list[Entry], shown: Entry, words: PageWords, *, go: Callable[[str], None]) -> None:
    """Build the strip in place."""
    with box("nav", "wsi-film") as strip:
        attributes(strip, aria_label=words("fields.heading"), data_testid="film")
        for n, entry in enumerate(fields, start=1):
            with box("button", "on" if entry.id == shown.id else "") as choice:
                attributes(choice, type="button", title=entry.title, data_field=entry.id)
                if entry.id == shown.id:
                    attributes(choice, aria_current="true")
                picture(f"/slides/{entry.id}/overview.jpg", words("fields.field", n=n))
                text(str(n))
            choice.on("click", lambda name=entry.id: go(name))
