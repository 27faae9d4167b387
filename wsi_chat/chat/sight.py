"""What of the slide is in view of a conversation: a finding, a tile, a region, or nothing; and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tilers import open_slide
from tilers.field import Field, FieldReader
from wsi_chat.analysis.result import SlideResult
from wsi_chat.chat.record import ID, RecordAnswer, SlideFacts, corners
from wsi_chat.errors import SettingError, SlideError, SlideNotFound
from wsi_chat.names import shown_names
from wsi_chat.schema import Box
from wsi_chat.settings import plane_of

if TYPE_CHECKING:
    from tilers import Slide
    from wsi_chat.engines.model import Model
    from wsi_chat.terminology import System

SAME = 0.95
"""A region that fills this much of a field is the field: nothing in it is pointed out."""
BESIDE = "Answers come from the record alone; --slide PATH says where the slide is now."


class Sight:
    """The open slide and the field in view.

    Attributes:
        reader: reads fields; None where the slide is missing, and ``missing`` says why.
        shown: the field in view; ``pointed`` the region in it that is meant, in level-0 pixels.

    Raises:
        SlideError: an image or slide without a record cannot be opened.
    """

    def __init__(
        self, source: str | Path | SlideResult, model: Model, system: System, facts: SlideFacts | None
    ) -> None:
        self._facts = facts
        self.missing = ""
        self.shown: Field | None = None
        self.pointed: Box | None = None
        self._slide = self._opened(source, model)
        self.reader: FieldReader | None = None
        if self._slide is not None:
            settings, dialect = model.settings, model.dialect
            self.reader = FieldReader(
                self._slide, px=settings.tile_px or dialect.tile_px, mpp=settings.tile_mpp or dialect.mpp_for(system)
            )

    def _opened(self, source: str | Path | SlideResult, model: Model) -> Slide | None:
        settings = model.settings
        if not isinstance(source, SlideResult):
            return open_slide(source, mpp=settings.mpp, reader=settings.reader, z=plane_of(settings.z))
        record = source.report.slide
        if source.slide_path is None or not source.slide_path.exists():
            self.missing = f"The slide {record.file_name} is not where it was. {BESIDE}"
            return None
        try:
            names = shown_names(source.slide_path, record.file_name)
            slide = open_slide(
                source.slide_path,
                mpp=settings.mpp or record.mpp,
                reader=settings.reader,
                z=plane_of(settings.z),
                names=names,
            )
        except SlideError as error:
            self.missing = f"{names.hide(error.message)} {BESIDE}"
            return None
        if slide.fingerprint != record.fingerprint:
            slide.close()
            self.missing = f"{slide.name} is not the slide that was analyzed: its content differs. {BESIDE}"
            return None
        return slide

    # ------------------------------------------------------------------------------------------ looking

    def look_at(self, what: str | Box) -> Field:
        """Put a finding, a tile or a region (level-0 px) in view, at the magnification that suits the model.

        A finding or a region smaller than a field is pointed out in a field around it; a tile is shown as it is.

        Raises:
            SettingError: there is no such id, or the region lies outside the slide.
            SlideError: the slide is missing, or the place cannot be read.
        """
        finding = self._facts.finding(what) if self._facts and isinstance(what, str) else None
        tile = self._facts.tile(what) if self._facts and isinstance(what, str) else None
        if isinstance(what, str) and finding is None and tile is None:
            raise SettingError(f"There is no finding or tile {what!r}.", hint="/find and /why name some that exist.")
        if self.reader is None:
            raise SlideNotFound(self.missing)
        if tile is not None:
            self.shown, self.pointed = self.reader.tile(tile), None
            return self.shown
        if isinstance(what, Box):
            region, name = self.reader.inside(what), ""
        else:
            assert finding is not None
            region, name = finding.box, finding.id
        self.shown, self.pointed = self.reader.around(region, name=name), region
        if max(region.width, region.height) >= SAME * self.shown.box.width:
            self.pointed = None
        return self.shown

    def clear(self) -> None:
        self.shown = self.pointed = None

    def ensure(self, question: str, notes: list[str]) -> str:
        """Make sure that something is in view; why not, in a sentence, where nothing can be.

        An id in the question is looked at. Otherwise, where nothing is in view, what carries the verdict is taken,
        or the picture itself where it is no larger than a field.
        """
        if self.reader is None:
            return f"That needs the picture, and the slide cannot be read. {self.missing}"
        named = [name for name in ID.findall(question) if self._facts is not None and self._facts.exists(name)]
        if named:
            self.look_at(named[0])
            return ""
        if self.shown is not None:
            return ""
        carrying = self._facts.carrying() if self._facts is not None else None
        if carrying is not None:
            self.look_at(carrying)
            notes.append(f"nothing was in view: {carrying} was taken, which carries the verdict")
            return ""
        side, longest = self.reader.side, max(self.reader.slide.size)
        if side is not None and longest > 2 * side:
            name = self.reader.slide.name
            if self._facts is not None:
                return f"{name} is larger than one field: choose a place with /tile ID or /region x0 y0 x1 y1."
            return (
                f"{name} is larger than one field: choose a place with /region x0 y0 x1 y1, or run wsi-chat analyze and"
                " chat about its folder."
            )
        self.shown = self.reader.whole() if side is None else self.reader.around(self.reader.bounds)
        self.pointed = None
        notes.extend(self.reader.notes)
        return ""

    def describe(self) -> RecordAnswer:
        """What is in view, in words, with the ids of the record that lie there."""
        assert self.shown is not None
        scale = f" at {self.shown.mpp:.3g} µm/px" if self.shown.mpp else ""
        text = f"In view: {corners(self.shown.box)}{scale}"
        reader = self.reader
        if reader is not None and reader.side and self.shown.mpp and self.shown.mpp > reader.mpp * 1.05:
            text += f", coarser than the {reader.mpp:g} that suit the model (it reads {reader.side} px at a time)"
        if self.pointed is not None:
            text += f", pointing at {corners(self.pointed)}"
        cites = self._facts.ids_in(self.pointed or self.shown.box) if self._facts else ()
        if cites:
            text += f"; there: {', '.join(cites)}"
        return RecordAnswer(f"{text}.", cites)

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()
            self._slide = None
